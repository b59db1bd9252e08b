"""What vLLM's layer leaves for its sampler within one step: states and logits of all rows, and the bound agent."""

from collections.abc import Callable

from torch import Tensor, dtype, float32, nn

from langchain_mara.decoding.judging.before import Outlook
from langchain_mara.exceptions import UnsupportedModelError


class AtHand:
    """Hands states and logits over from the layer that computes logits to the processor that asks the agent.

    vLLM calls the layer for the rows that it draws from, then masks and processors, all in one thread. Afterwards it
    may call the layer for other rows (log-probabilities of prompts), which nobody waits for.

    Attributes:
        bind: Makes the agent that judges from the output embeddings; None if no processor is in this process.
        expected: Whether the rows of the next step hold an aligned request.
        agent: The bound agent, after the first call of the layer.
    """

    def __init__(self) -> None:
        self.bind: Callable[[Tensor], nn.Module] | None = None
        self.expected = False
        self.agent: nn.Module | None = None
        self._outlook: Outlook | None = None

    def serve(self, bind: Callable[[Tensor], nn.Module]) -> None:
        """Begins to serve a processor.

        Args:
            bind: Makes the agent that judges from (vocabulary, d) output embeddings.
        """
        self.bind, self.agent, self.expected, self._outlook = bind, None, False, None

    def leave(self, states: Tensor, logits: Tensor | None, output_embeddings: Callable[[], Tensor]) -> None:
        """Called by the layer with what it has computed.

        Args:
            states: (rows, d) states after the final norm.
            logits: (rows, vocabulary) logits of the policy model; None on a device that does not draw.
            output_embeddings: Gives the whole (vocabulary, d) matrix of the head. All devices of a model ask for it in
                the same call, because they may have to exchange its parts.
        """
        if self.bind is None:
            return
        if self.agent is None:
            # At the first call, which is a rehearsal where vLLM measures memory, so that the table counts.
            self.agent = self.bind(output_embeddings())
        if self.expected and logits is not None and len(logits):
            self._outlook = Outlook.of(states, logits.clone() if _is_shared(logits.dtype) else logits)

    def forget(self) -> None:
        """Called instead of `take` where no row is aligned."""
        self._outlook, self.expected = None, False

    def take(self, rows: int) -> tuple[Outlook, nn.Module]:
        """What is known of the rows that are drawn from, once, and who judges.

        Args:
            rows: Number of rows that the sampler has.

        Raises:
            UnsupportedModelError: If the model's logits do not come from the layer, or have other rows.
        """
        outlook = self._outlook
        self.forget()
        if outlook is None or self.agent is None or len(outlook.logits) != rows:
            found = "none" if outlook is None else str(len(outlook.logits))
            raise UnsupportedModelError(
                f"vLLM draws from {rows} rows of logits, and its LogitsProcessor layer has computed {found}. This "
                "model or setting computes logits elsewhere, so the agent cannot judge. Serve it with `mara serve`."
            )
        return outlook, self.agent


def _is_shared(logits: dtype) -> bool:
    """Whether the sampler changes the model's own logits; it copies those of other dtypes to float32 first."""
    return logits == float32


AT_HAND = AtHand()
"""The one of this process. vLLM gives each engine worker a process of its own."""

"""What both LangChain classes share besides decoding: their name, copies, and settings that a configuration changes."""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Self, cast

from langchain_core.runnables import ConfigurableField, Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.configurable import RunnableConfigurableFields
from langchain_core.runnables.utils import (
    AnyConfigurableField,
    ConfigurableFieldMultiOption,
    ConfigurableFieldSingleOption,
)
from typing_extensions import override

from langchain_mara._base import LocalModel


class ConfigurableModel(LocalModel):
    """A local model whose fields LangChain's configuration may change, the model included."""

    @property
    def model_name(self) -> str:
        """Name of the model, under which LangChain's agents look for it."""
        return self.model_id

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> "ConfiguredFields":
        """Lets the configuration of a call change fields; `model` takes the name of another model.

        Args:
            **kwargs: Fields, and how a configuration names them.

        Raises:
            ValueError: If there is no such field.
        """
        default: Any = self
        fields = type(self).model_fields
        if unknown := sorted(set(kwargs) - set(fields)):
            raise ValueError(f"There is no field {', '.join(unknown)} to configure. Use one of {', '.join(fields)}.")
        return ConfiguredFields(default=default, fields=kwargs)

    def _reconfigured(self, changes: Mapping[str, Any]) -> Self:
        """An instance with other values of any fields. A `model` that is text is loaded by its name."""
        model = changes.get("model")
        options = {name: value for name, value in changes.items() if name not in type(self)._fixed}
        others = {name: value for name, value in changes.items() if name in type(self)._fixed}
        if isinstance(model, str):
            others.pop("model")
        configured = self._on_model(model if isinstance(model, str) else None, options)
        return configured._copied(others) if others else configured

    def __copy__(self) -> Self:
        return self._copied({})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # The weights are frozen. Copying them would double the memory and lose the shared running batch.
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise pickle.PicklingError(
            f"{type(self).__name__} holds a loaded model and cannot be pickled. Send the model's name and the "
            f"settings instead, and call {type(self).__name__}.from_model_id in the other process."
        )


class ConfiguredFields(RunnableConfigurableFields):  # type: ignore[type-arg]  # with them, pydantic makes a class of each
    """Fields to configure. LangChain's own class would give every field anew, and so hide which of them were given.

    With tools or a schema they stay configurable, as those of `init_chat_model` do. LangChain's own class would bind
    both to the model as it was before.
    """

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        """Lets the model call tools; see `ChatMara.bind_tools`."""
        chat: Any = self.default
        return self.bind(**chat.bind_tools(tools, **kwargs).kwargs)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[Any, Any]:
        """Reads every answer as a value of a schema; see `ChatMara.with_structured_output`."""
        kind: Any = type(self.default)
        return cast("Runnable[Any, Any]", kind.with_structured_output(self, schema, **kwargs))

    @override
    def _prepare(self, config: RunnableConfig | None = None) -> tuple[Runnable[Any, Any], RunnableConfig]:
        config = ensure_config(config)
        given = config.get("configurable", {})
        changes = {
            name: _chosen(spec, given)
            for name, spec in self.fields.items()
            if spec.id in given or not isinstance(spec, ConfigurableField)
        }
        default: Any = self.default
        return (default._reconfigured(changes) if changes else default), config


def _chosen(spec: AnyConfigurableField, given: Mapping[str, Any]) -> Any:
    """The value of a field in a configuration."""
    if isinstance(spec, ConfigurableFieldSingleOption):
        return spec.options[given.get(spec.id) or spec.default]
    if isinstance(spec, ConfigurableFieldMultiOption):
        return [spec.options[option] for option in given.get(spec.id, spec.default)]
    return given[spec.id]

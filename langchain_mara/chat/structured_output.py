"""Answers in the form of a schema: what is bound to the model, and how its answer is read."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser, PydanticToolsParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from pydantic import BaseModel
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import override

from langchain_mara.chat.tool_choice import tool_schemas
from langchain_mara.exceptions import OptionsError

Method = Literal["function_calling", "json_schema", "json_mode"]


def structured(
    chat: BaseChatModel,
    schema: dict[str, Any] | type,
    *,
    method: Method | None,
    include_raw: bool,
    strict: bool | None,
    kwargs: Mapping[str, Any],
) -> Runnable[LanguageModelInput, Any]:
    """The chat model with its answers read as values of a schema.

    Args:
        chat: The chat model.
        schema: A pydantic class, a `TypedDict`, a JSON schema or a tool in OpenAI's format.
        method: `function_calling` (default) forces a call of a tool with this schema. `json_schema` and `json_mode`
            bind `response_format`, which constrains decoding.
        include_raw: Whether to return the message and the error, too, in a dictionary.
        strict: Whether a value that does not conform to the schema is an error, where the schema is no class.
        kwargs: Other arguments of a call.

    Raises:
        OptionsError: If the method is unknown, or the schema is none.
    """
    method = method or "function_calling"
    if method not in get_args(Method):
        raise OptionsError(f"method={method!r} is unknown. Use {', '.join(get_args(Method))}.")
    [tool] = tool_schemas([schema], strict=strict)
    traced = {"ls_structured_output_format": {"kwargs": {"method": method, "strict": strict}, "schema": schema}}
    if method == "function_calling":
        bound = chat.bind_tools([tool], tool_choice=tool["function"]["name"], **traced, **kwargs)
    else:
        bound = chat.bind(response_format=_response_format(tool, method, strict=strict), **traced, **kwargs)
    parser = _parser(method, schema, tool, strict=strict)
    return _with_raw(bound, parser) if include_raw else bound | parser


def _response_format(tool: Mapping[str, Any], method: Method, *, strict: bool | None) -> dict[str, Any]:
    if method == "json_mode":
        return {"type": "json_object"}
    function = tool["function"]
    promised = {"name": function["name"], "schema": function["parameters"]}
    return {"type": "json_schema", "json_schema": promised if strict is None else {**promised, "strict": strict}}


def _with_raw(bound: Runnable[Any, AIMessage], parser: Runnable[Any, Any]) -> Runnable[Any, dict[str, Any]]:
    """LangChain's three keys: the message, its value, and the error if it has none."""
    parsed: Runnable[Any, Any] = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed: Runnable[Any, Any] = RunnablePassthrough.assign(parsed=lambda _: None)
    # Unlike `RunnableMap(raw=bound)`, this hands the options of `invoke` to the model.
    raw: Runnable[Any, Any] = bound | RunnableMap(raw=RunnablePassthrough())
    return raw | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _parser(method: Method, schema: Any, tool: Mapping[str, Any], *, strict: bool | None) -> Runnable[Any, Any]:
    function = tool["function"]
    if isinstance(schema, type) and issubclass(schema, BaseModel | BaseModelV1):
        if method == "function_calling":
            return _ModelOfCall(tools=[schema], first_tool_only=True)
        return _ModelOfText(pydantic_object=schema)
    promised = function["parameters"] if strict else None
    if method == "function_calling":
        return _DictOfCall(key_name=function["name"], first_tool_only=True, promised=promised)
    return _DictOfText(promised=promised)


class _ModelOfCall(PydanticToolsParser):
    """Reads a call as a pydantic object; an answer without one is an error."""

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        value = super().parse_result(result, partial=partial)
        return value if partial else _required(value, result)


class _DictOfCall(JsonOutputKeyToolsParser):
    """Reads a call as a dictionary; an answer without one is an error."""

    promised: dict[str, Any] | None = None

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        value = super().parse_result(result, partial=partial)
        return value if partial else _checked(_required(value, result), self.promised)


class _ModelOfText(PydanticOutputParser[Any]):
    """Reads JSON as a pydantic object; an answer that was cut off is an error."""

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        return super().parse_result(result if partial else _whole(result), partial=partial)


class _DictOfText(JsonOutputParser):
    """Reads JSON as a dictionary; an answer that was cut off is an error."""

    promised: dict[str, Any] | None = None

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        return _checked(super().parse_result(_whole(result)), self.promised)


def _message(result: Sequence[Generation]) -> BaseMessage:
    generation = result[0]
    return generation.message if isinstance(generation, ChatGeneration) else AIMessage(generation.text)


def _required(value: Any, result: list[Generation]) -> Any:
    """The value, if there is one; if not, the error says why."""
    if value is not None:
        return value
    message = _message(_whole(result))
    invalid = message.invalid_tool_calls if isinstance(message, AIMessage) else []
    reason = f"its call is not valid: {invalid[0]['error'] or invalid[0]['args']}" if invalid else "it called no tool"
    raise OutputParserException(
        f"The model gave no value of the schema, because {reason}. It answered: {message.text!r:.200}",
        llm_output=message.text,
    )


def _whole(result: list[Generation]) -> list[Generation]:
    """The result, unless the answer was cut off, which LangChain would complete by guessing."""
    message = _message(result)
    if message.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "The answer was cut off before its end, because it reached max_new_tokens. Raise max_new_tokens. "
            f"It ends with {message.text[-80:]!r}",
            llm_output=message.text,
        )
    return result


def _checked(value: Any, promised: dict[str, Any] | None) -> Any:
    """The value, if it conforms to the schema that was promised, if any."""
    if promised is None:
        return value
    try:
        from jsonschema import Draft202012Validator, exceptions  # noqa: PLC0415 -- only this needs it
    except ImportError:
        raise OptionsError(
            "strict=True with a schema that is no class needs jsonschema: pip install jsonschema"
        ) from None
    fault = exceptions.best_match(Draft202012Validator(promised).iter_errors(value))
    if fault is not None:
        raise OutputParserException(
            f"The value does not conform to the schema at {fault.json_path}: {fault.message:.200}"
        )
    return value

"""Messages as the prompt of a text model keep their roles, and token counts arrive however the model runs."""

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from scripted import scripted_chat

from langchain_mara import MaraLLM

CONVERSATION = [SystemMessage("be nice"), HumanMessage("hi"), AIMessage("the end"), HumanMessage("so?")]
PROMPT = ChatPromptTemplate.from_messages([("system", "be nice"), ("human", "{it}")])


async def test_messages_are_rendered_with_their_roles(llm: MaraLLM) -> None:
    expected = llm.as_chat().invoke(CONVERSATION).text
    plain = MaraLLM(**{**dict(llm), "use_chat_template": False})
    assert expected != llm.invoke(plain._convert_input(CONVERSATION).to_string())
    assert llm.invoke(CONVERSATION) == expected
    assert await llm.ainvoke(CONVERSATION) == expected
    assert "".join(llm.stream(CONVERSATION)) == expected
    assert "".join([text async for text in llm.astream(CONVERSATION)]) == expected
    assert llm.batch([CONVERSATION, "hi"]) == [expected, llm.invoke("hi")]
    assert (await llm.abatch([CONVERSATION]))[0] == expected
    # Some of LangChain's chains hand over the prompts of chat templates themselves.
    prompts: Any = [ChatPromptValue(messages=CONVERSATION)]
    for result in (llm.generate_prompt(prompts), await llm.agenerate_prompt(prompts)):
        assert result.generations[0][0].text == expected


def test_a_chat_prompt_keeps_its_roles(llm: MaraLLM) -> None:
    assert (PROMPT | llm).invoke({"it": "hi"}) == llm.as_chat().invoke(
        [SystemMessage("be nice"), HumanMessage("hi")]
    ).text
    assert llm.invoke([HumanMessage("hi")]) == llm.invoke("hi")
    prompted = MaraLLM(**{**dict(llm), "system_prompt": "be nice"})
    assert prompted.invoke([HumanMessage("hi")]) == prompted.invoke("hi") == (PROMPT | llm).invoke({"it": "hi"})


@pytest.mark.parametrize("family", ["prompt", "llama-json", "gemma", "hermes"])
def test_calls_and_their_results_are_those_of_the_chat_model(family: str) -> None:
    chat = scripted_chat(family, "so", after="\n")
    llm = MaraLLM(model=chat.model, tokenizer=chat.tokenizer)
    calls = [tool_call(name=name, args={"a": 1}, id=name) for name in ("f", "g")]
    results = [ToolMessage("7", tool_call_id=name) for name in ("f", "g")]
    conversation = [HumanMessage("hi"), AIMessage("", tool_calls=calls), *results]
    assert llm.encode(llm._convert_input(conversation).to_string()) == chat._encode(conversation, ())


def test_without_a_template_messages_are_langchains_text(llm: MaraLLM) -> None:
    plain = MaraLLM(**{**dict(llm), "use_chat_template": False})
    assert plain.invoke(CONVERSATION[1:2]) == plain.invoke("Human: hi")


def test_no_cache_entry_serves_another_conversation(llm: MaraLLM) -> None:
    cached = MaraLLM(**{**dict(llm), "cache": InMemoryCache()})
    one = [HumanMessage("hi\nAI: the end\nHuman: so?")]
    several = [HumanMessage("hi"), AIMessage("the end"), HumanMessage("so?")]
    for _ in range(2):
        assert cached.invoke(one) == llm.invoke(one) != llm.invoke(several)
        assert cached.invoke(several) == llm.invoke(several)


class Results(BaseCallbackHandler):
    """Keeps the results it is told of."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.results.append(response)


@pytest.mark.parametrize("run", ["invoke", "stream"])
def test_token_counts_arrive(llm: MaraLLM, run: str) -> None:
    kept = Results()
    list(getattr(llm, run)("hi", {"callbacks": [kept]}))
    prompt = len(llm.encode("hi"))
    usage = kept.results[0].generations[0][0].generation_info["token_usage"]
    assert usage == {"prompt_tokens": prompt, "completion_tokens": 16, "total_tokens": prompt + 16}

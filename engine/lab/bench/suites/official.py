"""LongBench and InfiniteBench from their official JSON-lines files in a local folder.

Nothing is downloaded. The part of a prompt up to and with the context is the document, what
follows is the question. A line that is broken is named by its number.
Sources: LongBench (arXiv 2308.14508), prompts and lengths of its config; InfiniteBench (arXiv
2402.13718), prompts of its prompt.py for chat models, lengths of its eval_utils.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import SekvError
from engine.lab.bench.suites.types import Ask, Count, Item, Sample


@dataclass(frozen=True)
class Dataset:
    """prompt: with {context} and other fields of a line. most: tokens of an answer."""

    prompt: str
    metric: str
    most: int


_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words.\n\nThe following are given passages.\n{context}\n\nAnswer the question based "
    "on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:"
)
_STORY = (
    "as concisely as you can, using a single phrase if possible. Do not provide any explanation."
)
_ARTICLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question "
    'cannot be answered based on the information in the article, write "unanswerable". If the '
    'question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any '
    "explanation."
)
LONGBENCH: Mapping[str, Dataset] = {
    "narrativeqa": Dataset(
        "You are given a story, which can be either a novel or a movie script, and a question. "
        f"Answer the question {_STORY}\n\nStory: {{context}}\n\nNow, answer the question based on "
        f"the story {_STORY}\n\nQuestion: {{input}}\n\nAnswer:",
        "qa_f1",
        128,
    ),
    "qasper": Dataset(
        "You are given a scientific article and a question. Answer the question "
        f"{_ARTICLE}\n\nArticle: {{context}}\n\n Answer the question based on the above article "
        f"{_ARTICLE}\n\nQuestion: {{input}}\n\nAnswer:",
        "qa_f1",
        128,
    ),
    "multifieldqa_en": Dataset(
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following "
        "question based on the above text, only give me the answer and do not output any other "
        "words.\n\nQuestion: {input}\nAnswer:",
        "qa_f1",
        64,
    ),
    "multifieldqa_zh": Dataset(
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，"
        "只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
        "qa_f1_chinese",
        64,
    ),
    "hotpotqa": Dataset(_PASSAGES, "qa_f1", 32),
    "2wikimqa": Dataset(_PASSAGES, "qa_f1", 32),
    "musique": Dataset(_PASSAGES, "qa_f1", 32),
    "dureader": Dataset(
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n"
        "问题：{input}\n回答：",
        "rouge_l_chinese",
        128,
    ),
    "gov_report": Dataset(
        "You are given a report by a government agency. Write a one-page summary of the report."
        "\n\nReport:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
        "rouge_l",
        512,
    ),
    "qmsum": Dataset(
        "You are given a meeting transcript and a query containing a question or instruction. "
        "Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the "
        "query based on the above meeting transcript in one or more sentences.\n\n"
        "Query: {input}\nAnswer:",
        "rouge_l",
        512,
    ),
    "multi_news": Dataset(
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n"
        "{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        "rouge_l",
        512,
    ),
    "vcsum": Dataset(
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n"
        "会议总结：",
        "rouge_l_chinese",
        512,
    ),
    "trec": Dataset(
        "Please determine the type of the question below. Here are some examples of questions."
        "\n\n{context}\n{input}",
        "classified",
        64,
    ),
    "triviaqa": Dataset(
        "Answer the question based on the given passage. Only give me the answer and do not "
        "output any other words. The following are some examples.\n\n{context}\n\n{input}",
        "qa_f1",
        32,
    ),
    "samsum": Dataset(
        "Summarize the dialogue into a few short sentences. The following are some examples."
        "\n\n{context}\n\n{input}",
        "rouge_l",
        128,
    ),
    "lsht": Dataset(
        "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}", "classified", 64
    ),
    "passage_count": Dataset(
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. "
        "Please carefully read these paragraphs and determine how many unique paragraphs there "
        "are after removing duplicates. In other words, how many non-repeating paragraphs are "
        "there in total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after "
        "removing duplicates. The output format should only contain the number, such as 1, 2, 3, "
        "and so on.\n\nThe final answer is: ",
        "retrieved",
        32,
    ),
    "passage_retrieval_en": Dataset(
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
        "paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}"
        "\n\nPlease enter the number of the paragraph that the abstract is from. The answer "
        'format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
        "retrieved",
        32,
    ),
    "passage_retrieval_zh": Dataset(
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}"
        "\n\n下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"
        '"段落1"，"段落2"等格式\n\n答案是：',
        "retrieved",
        32,
    ),
    "lcc": Dataset(
        "Please complete the code given below. \n{context}Next line of code:\n", "code_alike", 64
    ),
    "repobench-p": Dataset(
        "Please complete the code given below. \n{context}{input}Next line of code:\n",
        "code_alike",
        64,
    ),
}
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
"""Few-shot sets of which the first line of an answer alone is scored, as published."""

_HIDDEN = (
    "There is an important info hidden inside a lot of irrelevant text. Find it{memorise}. I will "
    "quiz you about the important information there.\n\n{{context}}\n\n{{input}}"
)
_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}"
INFINITEBENCH: Mapping[str, Dataset] = {
    "passkey": Dataset(_HIDDEN.format(memorise=" and memorize them"), "first_number", 6),
    "number_string": Dataset(_HIDDEN.format(memorise=""), "first_number", 12),
    "kv_retrieval": Dataset(
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        "{context}\n\n{input}",
        "word_found",
        50,
    ),
    "longbook_sum_eng": Dataset("Summarize the following book.\n\n{context}", "rouge_l", 1200),
    "longbook_choice_eng": Dataset(
        "Read the book and answer the question.\n\n{context}\n\nQuestion: {input}\n\nOnly one of "
        "the following options is correct, tell me the answer using one single letter (A, B, C, "
        f"or D). Don't say anything else.\n{_OPTIONS}",
        "choice",
        40,
    ),
    "longbook_qa_eng": Dataset(
        "Read the book below and answer a question.\n\n{context}\n\nQuestion: {input}\n\n"
        "Be very concise.",
        "qa_f1",
        40,
    ),
    "longbook_qa_chn": Dataset(
        "请根据以下书籍回答我的问题。\n\n{context}\n\n问题：{input}\n请尽量简短地回答。",
        "qa_f1_chinese",
        40,
    ),
    "math_find": Dataset("{prompt}\n\n{context}\n\n{input}", "found_value", 3),
    "math_calc": Dataset(
        "Compute the intermediate values in the following long expression.\n\n{context}",
        "values_until_wrong",
        30000,
    ),
    "code_run": Dataset(
        "Following is a set of Python functions. There is a function called named {func}.\n\n"
        "{context}\n\nPlease give me the exact number of the return value of {func_call}. Be "
        "concise. Your response must end with the final returned value.",
        "last_number",
        5,
    ),
    "code_debug": Dataset(
        "There is ONLY ONE function in the large project that is deliberately made to include an "
        "obvious error. Please find the function that contains the most obvious errors. I will "
        "give you four options to narrow your scope. You can inspect through the options and "
        "think. Eventually, tell me the answer using one single letter (A, B, C, or D).\n\n"
        f"{{context}}\n\nWhich funtion has deliberate error?\n{_OPTIONS}\n\nYou should first find "
        "the functions in the options. Repeat their content, inspect through code, and at last "
        "give me your answer for the function that has the deliberate and obvious error in A, B, "
        "C, or D.",
        "named_choice",
        5,
    ),
    "longdialogue_qa_eng": Dataset(
        "Below is a dialogue script where one random occurrence of a character name is replaced "
        'with "$$MASK$$", and you should try to guess who that character is.\n\nThe dialogue:'
        "\n\n---\n\n{context}\n\n---\n\nEnd of dialogue.\n\nWhich character is most likely "
        '"$$MASK$$"? Just say the name used by the scriptwriter (before the colon marks) of one '
        "single character and nothing else.",
        "name_found",
        40,
    ),
}
SETS = {"longbench": LONGBENCH, "infinitebench": INFINITEBENCH}
ORIGINS = {
    "longbench": "https://huggingface.co/datasets/THUDM/LongBench (data.zip)",
    "infinitebench": "https://huggingface.co/datasets/xinrongzhang2022/InfiniteBench",
}


@dataclass
class Official:
    """The first `samples` lines of each file that is there.

    folder: with NAME.jsonl per data set. tasks: which, all that are there when empty.
    """

    name: str
    folder: Path
    samples: int
    tasks: tuple[str, ...] = ()
    lines: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        known = SETS[self.name]
        unknown = [task for task in self.tasks if task not in known]
        if unknown:
            raise SekvError(f"{self.name} has no set '{unknown[0]}'; known: {', '.join(known)}")
        found = [task for task in known if (self.folder / f"{task}.jsonl").is_file()]
        missing = [task for task in self.tasks if task not in found]
        if not found or missing:
            what = f"{missing[0]}.jsonl" if missing else f"none of {self.name}'s files"
            where = f"there is {'no ' if missing else ''}{what} in {self.folder}"
            raise SekvError(f"{where}; get the official files from {ORIGINS[self.name]}")
        self.lines = {}
        for task in self.tasks or found:
            path = self.folder / f"{task}.jsonl"
            for number, line in read_lines(path, self.samples, needed(self.name, task)):
                try:
                    _fields(self.name, task, line)
                except SekvError as error:
                    raise SekvError(f"{path}, line {number}: {error}") from None
                self.lines[f"{task}/{number}"] = line

    @property
    def items(self) -> Sequence[Item]:
        return [Item(key, key.split("/")[0], 0) for key in self.lines]

    def draw(self, item: Item, count: Count) -> Sample:
        line, chosen = self.lines[item.key], SETS[self.name][item.task]
        fields, answers = _fields(self.name, item.task, line)
        before, _, after = chosen.prompt.partition("{context}")
        document = _put(before, fields) + str(line["context"])
        question = _put(after, fields).strip() or "Go on."
        classes = tuple(line.get("all_classes") or ())
        first = item.task in FIRST_LINE
        ask = Ask(question, answers, chosen.metric, chosen.most, classes, first)
        return Sample(document, (ask,))


def needed(suite: str, task: str) -> tuple[str, ...]:
    """The fields that every line must have."""
    if suite == "longbench":
        classes = ("all_classes",) if LONGBENCH[task].metric == "classified" else ()
        return ("context", "input", "answers", *classes)
    options = task in ("code_debug", "longbook_choice_eng")
    return ("context", "input", "answer", *(["options"] if options else []))


def read_lines(path: Path, most: int, fields: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """The first `most` lines with their numbers, from one.

    Raises:
        SekvError: a line is no JSON object or lacks a field; it is named.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if len(found) == most:
                break
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise SekvError(f"{path}, line {number}: not JSON ({error})") from error
            absent = [f for f in fields if not isinstance(line, dict) or f not in line]
            if absent:
                raise SekvError(f"{path}, line {number}: no field '{absent[0]}'")
            found.append((number, line))
    return found


def _fields(suite: str, task: str, line: dict[str, Any]) -> tuple[dict[str, str], tuple[Any, ...]]:
    """What fills the prompt, and the right answers.

    Raises:
        SekvError: there are none, or no question can be made of the line.
    """
    fields = {"input": str(line["input"]), "prompt": str(line.get("prompt", ""))}
    name = "answers" if suite == "longbench" else "answer"
    answer = line[name]
    answers = tuple(answer) if isinstance(answer, list) else (answer,)
    if not answers:
        raise SekvError(f"field '{name}' is empty")
    if suite == "longbench":
        return fields, answers
    options = line.get("options") or []
    fields |= {f"OPTION_{letter}": str(o) for letter, o in zip("ABCD", options, strict=False)}
    if task in ("code_debug", "longbook_choice_eng") and answers[0] in options:
        letter = "ABCD"[options.index(answers[0])]
        answers = (answers[0], letter) if task == "code_debug" else (letter,)
    if task == "code_run":
        call = re.search(r"func_\d+\(-?\d+\)", fields["input"])
        if call is None:
            raise SekvError(f"no call of a function in '{fields['input'][:60]}'")
        fields |= {"func_call": call.group(), "func": call.group().partition("(")[0]}
    if task == "math_find":
        wanted = re.search(r"The .+ of", fields["input"])
        found = wanted.group()[4:-3].lower() if wanted else "number"
        fields["prompt"] = f"What is the {found} in the following list?"
    return fields, answers


def _put(template: str, fields: dict[str, str]) -> str:
    """The template with its fields; other braces stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)

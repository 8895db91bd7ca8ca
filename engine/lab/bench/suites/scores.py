"""Official metrics, each 0 to 1. Where one differs from its origin, its line says how.

Sources: RULER (arXiv 2404.06654) string match; LongBench (arXiv 2308.14508) metrics.py and
eval.py; InfiniteBench (arXiv 2402.13718) compute_scores.py. Written anew from their definitions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

_CHINESE_MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢"
    "｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_MARKS = frozenset(string.punctuation + _CHINESE_MARKS)
_LATIN_MARKS = frozenset(string.punctuation + "‘’“”")


def score(metric: str, said: str, answers: Sequence[Any], extra: Sequence[Any] = ()) -> float:
    """How right an answer is, 0 to 1."""
    return METRICS[metric](said, answers, extra)


# ---------------------------------------------------------------------------- RULER


def all_found(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Share of the right strings that stand in the answer, in any case of letters."""
    return sum(str(one).lower() in said.lower() for one in answers) / len(answers)


def any_found(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Whether one of the right strings stands in the answer."""
    return float(any(str(one).lower() in said.lower() for one in answers))


# ---------------------------------------------------------------------------- LongBench


def exact_match(said: str, answers: Sequence[Any], extra: Sequence[Any] = ()) -> float:
    """Whether it is a right answer but for case, articles and punctuation (SQuAD,
    arXiv 1606.05250)."""
    return float(any(_words(said) == _words(str(one)) for one in answers))


def contains(said: str, answers: Sequence[Any], extra: Sequence[Any] = ()) -> float:
    """Whether the words of a right answer follow each other in what was said, normalised as for
    `exact_match`. Words and not characters: "ten" does not stand in "often"."""
    words = f" {' '.join(_words(said))} "
    return float(any(f" {' '.join(_words(str(one)))} " in words for one in answers))


def qa_f1(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """F1 of words without case, articles and punctuation; the best over the right answers."""
    return max(_f1(_words(said), _words(str(one))) for one in answers)


def qa_f1_chinese(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """F1 of characters without punctuation (InfiniteBench). LongBench cuts words with jieba."""
    return max(_f1(_characters(said), _characters(str(one))) for one in answers)


def rouge_l(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """F1 of the longest common subsequence of words, the best over the right answers."""
    return max(_rouge(said.split(), str(one).split()) for one in answers)


def rouge_l_chinese(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """The same over characters; LongBench cuts words with jieba."""
    return max(_rouge(list("".join(said.split())), list("".join(str(a).split()))) for a in answers)


def classified(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """1 over the number of classes that the answer names, if the right one is among them; names
    that are a part of the right one do not count. extra: all classes."""
    best = 0.0
    for right in answers:
        named = [c for c in extra if c in said and (c == right or c not in right)]
        best = max(best, 1 / len(named) if right in named else 0.0)
    return best


def retrieved(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Share of the numbers in the answer that are the right paragraph's, or the right count."""
    numbers = re.findall(r"\d+", said)
    best = 0.0
    for right in answers:
        wanted = re.findall(r"\d+", str(right))
        hits = sum(number == wanted[0] for number in numbers) if wanted else 0
        best = max(best, hits / len(numbers) if numbers else 0.0)
    return best


def code_alike(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Likeness of the first line that is neither comment nor fence to the right next line."""
    lines = said.lstrip("\n").split("\n")
    first = next((x for x in lines if "`" not in x and "#" not in x and "//" not in x), "")
    return max(round(100 * SequenceMatcher(None, first, str(a)).ratio()) / 100 for a in answers)


# ---------------------------------------------------------------------------- InfiniteBench


def first_number(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Whether the first whole number of the answer is the right one."""
    found = re.search(r"\d+", said)
    return float(found is not None and found.group() == str(answers[0]))


def word_found(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Whether the right word is a word of the answer."""
    return float(str(answers[0]) in _plain_words(said))


def name_found(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """The same in capitals."""
    return float(str(answers[0]) in [word.upper() for word in _plain_words(said)])


def last_number(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Whether the answer's last word is the right number."""
    words = re.sub(r"[\n.`'\":]", " ", said).split()
    return float(bool(words) and words[-1] == str(answers[0]))


def found_value(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Whether the first number of the answer, with or without decimals, is the right one."""
    found = re.search(r"\d+\.\d+|\d+", said)
    if found is None:
        return 0.0
    right = answers[0]
    value = float(found.group())
    return float(int(value) == right if isinstance(right, int) else value == float(right))


def values_until_wrong(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Share of a list of numbers that is right from the beginning on."""
    numbers = [int(number) for number in re.findall(r"\d+", said)]
    right = 0
    for mine, true in zip(numbers, answers, strict=False):
        if mine != true:
            break
        right += 1
    return right / len(answers)


def choice(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """Whether the letter chosen is right: the first character, after an answer's usual words, or
    the first letter that stands alone."""
    if said[:1] in tuple("ABCD"):
        return float(said[0] in answers)
    plain = " ".join(re.sub(r"[\n\"'.,?!{}]", " ", said).split())
    for words in ("answer is:", "answer:", "answer is", "option is"):
        _, found, after = plain.partition(words)
        if found:
            return float(after.strip()[:1] in tuple(str(a)[:1] for a in answers if a))
    return float(next((w in answers for w in plain.split() if w in ("A", "B", "C", "D")), False))


def named_choice(said: str, answers: Sequence[Any], extra: Sequence[Any]) -> float:
    """A function's name or its letter, the answer beginning with the letter or after the usual
    words. answers: (name, letter)."""
    name, letter = str(answers[0]), str(answers[1])
    if said[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    plain = " ".join(re.sub(r"[\n`'\"*-]|[Oo]ption", " ", said).split())
    for words in ("answer is:", "is:", "answer:"):
        _, found, after = plain.partition(words)
        if found:
            return float(after.strip().startswith((letter, name)))
    return 0.0


METRICS: dict[str, Callable[[str, Sequence[Any], Sequence[Any]], float]] = {
    metric.__name__: metric
    for metric in (
        all_found,
        any_found,
        exact_match,
        contains,
        qa_f1,
        qa_f1_chinese,
        rouge_l,
        rouge_l_chinese,
        classified,
        retrieved,
        code_alike,
        first_number,
        word_found,
        name_found,
        last_number,
        found_value,
        values_until_wrong,
        choice,
        named_choice,
    )
}


def _words(text: str) -> list[str]:
    """Words without case, articles and punctuation; printed quotation marks and apostrophes go like
    typed ones, so that "Hunter’s" and "Hunter's" are one word. (SQuAD keeps the printed ones.)"""
    bare = "".join(c for c in text.lower() if c not in _LATIN_MARKS)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _characters(text: str) -> list[str]:
    return [c for c in text.lower() if c not in _MARKS and not c.isspace()]


def _plain_words(text: str) -> list[str]:
    return re.sub(r"[\n:\"'.,?!{}]", " ", text).split()


def _f1(said: list[str], right: list[str]) -> float:
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if common else 0.0


def _rouge(said: list[str], right: list[str]) -> float:
    before = [0] * (len(right) + 1)
    for word in said:
        row = [0]
        for place, other in enumerate(right, 1):
            row.append(before[place - 1] + 1 if word == other else max(before[place], row[-1]))
        before = row
    common = before[-1]
    return 2 * common / (len(said) + len(right)) if common else 0.0

"""The rule by which a long answer is compressed while it is generated (ZoomR).

The rule only; `attention.long_answer` follows it. It knows nothing of the document.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thoughts:
    """Finished thoughts are compressed to summaries; a vote shows a few of them in full.

    A thought is a run of whole sentences of at least `shortest` tokens, or of `longest`
    where no sentence ends; its summary is its last `summary` tokens. Thoughts older than the
    last `recent` tokens are compressed. At the end of every sentence each query head of each layer
    names the `top` thoughts whose mean summary keys it scores highest; the `full` most named
    are shown in full and the `shown` next as summaries, the same ones to every layer and head.
    Source: ZoomR (arXiv 2604.10898), section 3: c = 2, k = 2, w = 512. There a trained model
    writes the summaries, all that were named are shown, and nothing bounds them.
    """

    full: int = 2
    top: int = 2
    recent: int = 512
    shortest: int = 64
    longest: int = 256
    summary: int = 20
    shown: int = 16

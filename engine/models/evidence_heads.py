"""Which heads look at the sentence that answers a question: one weight for every query head.

Measured once per model on a short text with questions, written for this purpose: the model reads
the text and a question, is made to say the answer, and each head is scored by the share of its
attention to the text that lies on the sentence which states it, above that sentence's share of the
text. Citations weigh attention by it.

Source: retrieval heads (arXiv 2404.15574) and their semantic form in CompressKV (arXiv 2606.24467,
section 3.2); there the answer's own tokens are looked for, here the whole sentence.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.compression.scores import NEG_INF, group_queries
from engine.errors import ReaderError
from engine.store import disk

if TYPE_CHECKING:
    from engine.models.hf import Reader
    from engine.types import ModelIdentity

FORMAT = "sekv-evidence-heads 1"
SHIPPED = Path(__file__).parent / "heads"

TEXT = (
    "The village of Arnsby lies where the river Telm leaves the hills. "
    "A stone bridge of five arches was built there in 1714 by a mason called Peter Lund, who had "
    "learnt his trade in the south. "
    "Before the bridge there was only a ferry, and in spring the ferryman refused to cross for "
    "weeks. "
    "The oldest house is the inn, the Green Heron, whose cellar is older than its walls. "
    "It is said that a bishop once hid in that cellar from soldiers, and that the innkeeper's "
    "daughter brought him bread every night. "
    "In the year of the great flood the water reached the second floor of the school. "
    "The children were taken out through the windows by two fishermen, Anders Holt and his "
    "brother. "
    "Nobody drowned, but the church lost its organ, and for eleven years the hymns were sung "
    "without one. "
    "A new organ came at last from Lubeck, paid for by a widow who had sold her vineyard. "
    "Doctor Emma Varley settled in Arnsby when she was thirty-one. "
    "She had studied in Zurich and owned the only microscope in the district. "
    "On market days farmers brought her sick hens and lame horses as readily as their children. "
    "She never took money from the poor; most of them paid with eggs or firewood. "
    "Her diary, which she kept in green ink, is now in the town museum. "
    "She writes in it that the winter she feared most was that of the typhus, when she slept in "
    "her boots. "
    "The mill below the bridge belonged to the Kessler family until it burned down. "
    "The fire began in the drying room, where a lamp had been left near the hops. "
    "Old Kessler saved his ledgers and nothing else. "
    "His son Jacob did not rebuild the mill but went to sea, and returned after nine years with a "
    "parrot and a wooden leg. "
    "He opened a shop for clocks, although he had never learnt the trade, and the shop did well. "
    "The parrot could say the names of the apostles and was feared by the sexton. "
    "The railway came late to the valley. "
    "The engineers wanted to drive a tunnel through Crow Hill, but the rock was too soft, so the "
    "line was led around the lake. "
    "The first train was drawn by an engine named Juno and carried a brass band and forty sheep. "
    "The stationmaster, a thin man called Osric Bell, grew roses between the rails of the siding. "
    "His roses won a silver cup in the capital, and he drank his tea from it. "
    "Today most people in Arnsby work at the glassworks, which makes bottles for medicine. "
    "Its chimney is painted red because a pilot once mistook it for a church tower. "
    "Storks nest on it each April, and the furnace is not lit until the young have flown. "
    "The yearly fair is held on the last Sunday of August in the meadow behind the school."
)
"""Made up for this measurement; no place or person of it exists."""

ASKED: tuple[tuple[str, str, str], ...] = (
    ("Who built the bridge over the Telm?", "Peter Lund", "A stone bridge of five"),
    ("How did people get over the river in earlier times?", "by a ferry", "Before the bridge"),
    ("What is the inn called?", "the Green Heron", "The oldest house is"),
    ("Who once took refuge below the inn?", "a bishop", "It is said that"),
    ("How high did the flood rise in the school?", "to the second floor", "In the year of"),
    ("Who rescued the pupils?", "Anders Holt and his brother", "The children were"),
    ("How long did the church go without an organ?", "eleven years", "Nobody drowned"),
    ("What did the widow part with to buy the instrument?", "her vineyard", "A new organ came"),
    ("At what age did Emma Varley come to live there?", "thirty-one", "Doctor Emma Varley"),
    ("Where did the doctor learn medicine?", "in Zurich", "She had studied"),
    ("How did poor patients pay the doctor?", "with eggs or firewood", "She never took"),
    ("What colour of ink did Emma Varley write with?", "green", "Her diary"),
    ("Which disease made the doctor sleep in her boots?", "typhus", "She writes in it"),
    ("What caused the fire in the mill?", "a lamp near the hops", "The fire began"),
    ("What did old Kessler rescue from the flames?", "his ledgers", "Old Kessler"),
    ("What did Jacob bring home from his voyages?", "a parrot and a wooden leg", "His son Jacob"),
    ("What did Jacob sell?", "clocks", "He opened a shop"),
    ("Who was afraid of the bird?", "the sexton", "The parrot could"),
    ("Why was no tunnel made through Crow Hill?", "the rock was too soft", "The engineers"),
    ("What was the name of the first locomotive?", "Juno", "The first train"),
    ("Which flowers did Osric Bell grow?", "roses", "The stationmaster"),
    ("What prize did the stationmaster's garden win?", "a silver cup", "His roses won"),
    ("What is made at the glassworks?", "bottles for medicine", "Today most people"),
    ("Why does the chimney have its colour?", "a pilot mistook it for a church", "Its chimney"),
    ("Which birds live on the chimney?", "storks", "Storks nest on it"),
    ("When does the fair take place?", "the last Sunday of August", "The yearly fair"),
)
"""Question, answer that is said, and how the sentence begins that states it."""

"""How to choose tokens."""

from __future__ import annotations

import dataclasses
import math
import numbers

from tfgpt.errors import UserError

HUGGING_FACE_SETTINGS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "num_beams",
    "length_penalty",
    "seed",
)
INTEGERS = ("max_new_tokens", "top_k", "num_beams", "seed")


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How to continue a prompt.

    Args:
        max_new_tokens: how many tokens to add at most.
        temperature: divides the logits before sampling; 0 takes the likeliest token (greedy).
        top_k: sample among the k likeliest tokens; 0 among all.
        top_p: sample among the likeliest tokens that together reach this probability (Holtzman et al. 2020).
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019).
        num_beams: above 1, beam search instead of sampling.
        length_penalty: beam search ranks by log-probability / length ** length_penalty.
        stop_token_ids: tokens that end a continuation; by default the tokenizer's end of text, where it has one.
        seed: of sampling. Row i draws its numbers from seed + i, or from its own where a list is given, so that a row
            gives in a batch what it gives alone under its seed.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] | None = None
    seed: int | tuple[int, ...] = 0

    def __post_init__(self):
        for name, valid, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number from 0"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a finite number above 0"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("length_penalty", math.isfinite(self.length_penalty), "a finite number"),
        ):
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)}, expected {expected}")
        for name in ("max_new_tokens", "top_k"):  # int32 in every graph
            if getattr(self, name) >= 2**31:
                raise UserError(f"{name} is {getattr(self, name)}, expected less than 2^31")
        for seed in (self.seed,) if isinstance(self.seed, numbers.Integral) else self.seed:
            if not -(2**62) < seed < 2**62:
                raise UserError(f"seed is {seed}, expected less than 2^62")
        sampled = self.temperature > 0 or self.repetition_penalty != 1
        if self.num_beams > 1 and sampled:
            raise UserError("beam search takes no temperature and no repetition_penalty, expected them at 0 and 1")

    @classmethod
    def from_hugging_face(cls, config):
        """The settings of a generation_config.json.

        What the file leaves out has this class' default; without `do_sample` the likeliest token is taken, whatever
        the temperature, and `eos_token_id` may be one id, a list, or null for none.

        Args:
            config: its contents, a dictionary.

        Raises:
            UserError: for values out of range.

        Example:

        >>> config = {"do_sample": True, "top_k": 40, "eos_token_id": 50256}
        >>> settings = GenerationSettings.from_hugging_face(config)
        >>> settings.temperature, settings.top_k, settings.stop_token_ids
        (1.0, 40, (50256,))
        """
        settings = {name: config[name] for name in HUGGING_FACE_SETTINGS if config.get(name) is not None}
        for name, value in settings.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise UserError(f"{name} is {value!r}, expected a number")
            if name in INTEGERS and not isinstance(value, numbers.Integral):
                raise UserError(f"{name} is {value!r}, expected an integer")
        if config.get("do_sample"):
            settings.setdefault("temperature", 1.0)
        else:
            settings |= {"temperature": 0.0}
        if "eos_token_id" in config:
            stops = config["eos_token_id"]
            settings["stop_token_ids"] = tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,)
            if not all(type(token_id) is int for token_id in settings["stop_token_ids"]):
                raise UserError(f"eos_token_id is {stops!r}, expected a token id, a list of them, or null")
        return cls(**settings)

    def row_seeds(self, rows):
        """One seed for each of `rows` rows."""
        if isinstance(self.seed, numbers.Integral):
            return [self.seed + i for i in range(rows)]
        if len(self.seed) != rows:
            raise UserError(f"seed has {len(self.seed)} values for {rows} prompts, expected one each")
        return list(self.seed)

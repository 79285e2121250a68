"""Reading a config's JSON key by key: each key is honoured, fixed to what is supported, or known to change no number.

What nobody asked for is refused by `finish`, so a key that a later release adds is never passed over.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from npembed.records.config import VisionConfig
from npembed.support.messages import brief

Json = Mapping[str, Any]

WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path add_cross_attention architectures
    attention_dropout auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id id2label initializer_factor initializer_range is_decoder is_encoder_decoder label2id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type processor_class
    pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)
"""Keys that transformers writes for every model, and that say nothing of the numbers computed here."""


class Keys:
    """One JSON object of a config, read key by key.

    Parameters
    ----------
    content : mapping
    where : str
        What the object is called in messages: "config.json", "vision_config".
    """

    def __init__(self, content: Json, where: str) -> None:
        self.content, self.where = content, where
        self.said: dict[str, str] = {}
        """What each key is that was asked for: "honoured", "fixed" or "without effect"."""

    def given(self, **keys: str) -> dict[str, Any]:
        """Field -> value, for those of the fields whose key is there and not null; all of these keys are honoured."""
        self.said |= dict.fromkeys(keys.values(), "honoured")
        return {field: self.content[key] for field, key in keys.items() if self.content.get(key) is not None}

    def value(self, key: str, default: Any = None) -> Any:
        """One value, which is honoured."""
        return self.given(field=key).get("field", default)

    def levels(self) -> dict[str, Any]:
        """The fields `mean` and `std`, as far as they are given; one number stands for each channel, as in transformers."""
        given = self.given(mean="image_mean", std="image_std")
        return {name: [value] * 3 if type(value) in (int, float) else value for name, value in given.items()}

    def fixed(self, key: str, *supported: Any, absent: bool = True) -> None:
        """An error unless the key has one of these values, or, where it may be absent, is not there."""
        self.said[key] = "fixed"
        value = self.content.get(key)
        if value is None and absent:
            return
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in supported):
            came = "is missing" if value is None else f"is {brief(value)}"
            words = " or ".join(map(repr, supported)) or "absent"
            raise ValueError(f"{key} of {self.where} {came}; supported is {words}")

    def section(self, key: str) -> "Keys":
        """The object under a key; an empty one when it is not there."""
        self.said[key] = "honoured"
        value = self.content.get(key)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{key} of {self.where} must be a JSON object; got {brief(value)}")
        return Keys(value or {}, key)

    def without_effect(self, *keys: str) -> None:
        """These keys change no number that is computed here."""
        self.said |= dict.fromkeys(keys, "without effect")

    def finish(self) -> None:
        """An error if a key is left that nobody asked for."""
        self.without_effect(*WITHOUT_EFFECT - set(self.said))
        unknown = sorted(set(self.content) - set(self.said))
        if unknown:
            key = unknown[0]
            came = repr(self.content[key])[:60]
            raise ValueError(f"{key} of {self.where} is {came}; the key is not known here and may change the numbers")


def read_vision(keys: Keys, defaults: VisionConfig, *idle: str) -> VisionConfig:
    """A tower's sizes, where they are given; `idle` are keys that change no number."""
    sizes = keys.given(**{f.name: f.name for f in fields(VisionConfig)})
    keys.fixed("hidden_act", "gelu_pytorch_tanh")
    keys.without_effect("model_type", *idle)
    keys.finish()
    return replace(defaults, **sizes)

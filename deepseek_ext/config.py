"""What a model is: a dataclass with the field names of Hugging Face's DeepseekV3Config, and presets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

BalanceLoss = Literal["sequence", "batch", "none"]

_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}

# What the released code can be configured to do and this package does not: key, accepted values, meaning.
_FIXED_IN_HF: list[tuple[str, tuple[Any, ...], str]] = [
    ("hidden_act", ("silu",), "the FFN is SwiGLU"),
    ("attention_bias", (False,), "no projection has a bias"),
    ("attention_dropout", (0, 0.0, None), "there is no dropout"),
    ("tie_word_embeddings", (False,), "embedding and head are separate"),
    ("rope_interleave", (True, None), "rotary pairs are interleaved"),
    ("scoring_func", ("sigmoid",), "router scores are sigmoids"),
    ("topk_method", ("noaux_tc",), "experts are chosen by biased scores within groups"),
    ("moe_layer_freq", (1,), "every layer after the dense ones is MoE"),
]


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The shape of a DeepSeek-V3 model; the defaults are the released 671 B model's (paper, section 4.2).

    Raises ValueError for a configuration that cannot work, saying what to write instead.
    """

    vocab_size: int = 129280
    """Rows of the embedding and of the output head."""
    hidden_size: int = 7168
    """Width of the residual stream."""
    num_hidden_layers: int = 61
    """Blocks of the main model; MTP modules come on top."""
    first_k_dense_replace: int = 3
    """The first so many blocks have a dense FFN, the others a mixture of experts."""
    intermediate_size: int = 18432
    """Width of the dense FFN."""

    num_attention_heads: int = 128
    """Heads of every attention layer."""
    q_lora_rank: int | None = 1536
    """Rank of the compressed query; None projects queries directly."""
    kv_lora_rank: int = 512
    """Rank of the compressed key and value, which is what inference caches."""
    qk_nope_head_dim: int = 128
    """Part of a query or key head that carries no position."""
    qk_rope_head_dim: int = 64
    """Part of a query or key head that is rotated by position; keys share it among all heads. Even."""
    v_head_dim: int = 128
    """Width of a value head."""
    max_position_embeddings: int = 163840
    """Longest sequence in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """None, or YaRN's settings (arXiv:2309.00071).

    {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}; beta_fast, beta_slow, mscale and
    mscale_all_dim may be given too.
    """

    n_routed_experts: int = 256
    """Experts that the router chooses from."""
    n_shared_experts: int = 1
    """Experts that see every token, held as one SwiGLU n_shared_experts times as wide; may be 0."""
    moe_intermediate_size: int = 2048
    """Width of one expert."""
    num_experts_per_tok: int = 8
    """Routed experts that a token is sent to (top_k)."""
    n_group: int = 8
    """Groups that the routed experts are divided into (nodes, in the paper's deployment)."""
    topk_group: int = 4
    """Groups that one token's experts may come from."""
    norm_topk_prob: bool = True
    """Whether the chosen scores are divided by their sum."""
    routed_scaling_factor: float = 2.5
    """Factor on the gate weights."""
    balance_loss: BalanceLoss = "sequence"
    """Over what the balance loss evens the load of experts: each sequence (paper, eq. 17 to 20), all tokens
    of a call (section 4.5.3), or nothing. Batch-wise, gradients depend on how a step is split into
    micro-batches, each of which is balanced by itself. The bias of the routers is not affected."""
    balance_alpha: float = 1e-4
    """Weight of the balance loss; 0 leaves it out."""

    num_nextn_predict_layers: int = 1
    """Multi-token prediction modules (D in the paper); module k predicts the token k + 1 ahead."""
    mtp_weight: float = 0.3
    """Weight of the multi-token prediction loss (lambda in the paper, eq. 25) where a call gives none."""

    rms_norm_eps: float = 1e-6
    """Added to the mean square in every norm."""
    initializer_range: float = 0.006
    """Standard deviation of every matrix at initialisation."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                may_be_zero = field.name in _MAY_BE_ZERO
                if not isinstance(value, int) or isinstance(value, bool) or value < (0 if may_be_zero else 1):
                    wanted = "an integer >= 0" if may_be_zero else "a positive integer"
                    raise ValueError(f"ModelConfig: {field.name} must be {wanted}, got {value!r}")
        rank = self.q_lora_rank
        if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise ValueError(
                f"ModelConfig: q_lora_rank must be a positive integer, got {rank!r}; "
                "write None to project queries directly"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(
                f"ModelConfig: qk_rope_head_dim must be even, since dimensions are rotated in pairs, "
                f"got {self.qk_rope_head_dim}; write {self.qk_rope_head_dim + 1}"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"ModelConfig: first_k_dense_replace ({self.first_k_dense_replace}) exceeds "
                f"num_hidden_layers ({self.num_hidden_layers}); write at most {self.num_hidden_layers}"
            )
        for name in ("rope_theta", "rms_norm_eps", "routed_scaling_factor"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"ModelConfig: {name} must be positive, got {getattr(self, name)!r}")
        for name in ("balance_alpha", "mtp_weight", "initializer_range"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"ModelConfig: {name} must not be negative, got {getattr(self, name)!r}")
        if self.balance_loss not in get_args(BalanceLoss):
            raise ValueError(
                f"ModelConfig: balance_loss must be one of {', '.join(get_args(BalanceLoss))}, "
                f"got {self.balance_loss!r}"
            )
        self._check_router()
        if self.rope_scaling is not None:
            self.rope_scaling = _checked_yarn(self.rope_scaling)

    def _check_router(self) -> None:
        if self.n_routed_experts % self.n_group:
            divisors = [d for d in range(1, self.n_routed_experts + 1) if self.n_routed_experts % d == 0]
            raise ValueError(
                f"ModelConfig: n_routed_experts ({self.n_routed_experts}) must be a multiple of n_group "
                f"({self.n_group}); write an n_group out of {divisors}"
            )
        if self.topk_group > self.n_group:
            raise ValueError(
                f"ModelConfig: topk_group ({self.topk_group}) exceeds n_group ({self.n_group}); "
                f"write at most {self.n_group}"
            )
        group_size = self.n_routed_experts // self.n_group
        reachable = self.topk_group * group_size
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"ModelConfig: num_experts_per_tok ({self.num_experts_per_tok}) exceeds the {reachable} "
                f"experts that topk_group ({self.topk_group}) groups of {group_size} hold; "
                f"raise topk_group or write at most {reachable}"
            )

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A named configuration, with single fields changed by keyword.

        name: "deepseek-v3" (671.026 B parameters and an MTP module of 11.61 B), "deepseek-v3-16b" (15.706 B,
        no MTP module), "small" (76 M, for a CPU) or "tiny" (for tests). Raises ValueError for another name.
        """
        if name not in _PRESETS:
            raise ValueError(
                f"ModelConfig.preset: no preset is called {name!r}; choose from {sorted(_PRESETS)}"
            )
        return cls(**{**_PRESETS[name], **changes})

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | str | Path) -> Self:
        """Reads a Hugging Face configuration: a dict, or a folder that holds config.json.

        Both spellings of the rotary settings are read (rope_theta with rope_scaling, and rope_parameters).
        Keys that describe training or files are ignored. Raises ValueError for another architecture, where
        the configuration asks for something this model is not, and where the folder has no config.json that
        can be read.
        """
        if isinstance(source, str | Path):
            source = read_hf_config(Path(source))
        _check_architecture(source)
        for key, accepted, meaning in _FIXED_IN_HF:
            if key in source and source[key] not in accepted:
                raise ValueError(f"ModelConfig.from_hf: {key} = {source[key]!r} is not supported: {meaning}")
        heads = source.get("num_attention_heads")
        if source.get("num_key_value_heads") not in (None, heads):
            raise ValueError(
                f"ModelConfig.from_hf: num_key_value_heads ({source['num_key_value_heads']}) differs from "
                f"num_attention_heads ({heads}): every head has its own keys and values here"
            )
        names = {field.name for field in fields(cls)} - {"initializer_range"}  # theirs is not the paper's
        values: dict[str, Any] = {name: source[name] for name in names if name in source}
        if values.get("n_shared_experts", 1) is None:
            values["n_shared_experts"] = 0
        if "num_mtp_layers" in source:  # another name that transformers has for it
            values.setdefault("num_nextn_predict_layers", source["num_mtp_layers"])
        values.update(_read_rope(source))
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The Hugging Face configuration, for transformers' DeepseekV3ForCausalLM: what json can hold.

        Rotary settings are in the released spelling, rope_theta with rope_scaling. from_hf reads it back to
        an equal configuration, except for initializer_range, which neither of them deals in: what released
        files say there is not what the model was trained from.
        """
        values = {key: value for key, value in asdict(self).items() if key != "initializer_range"}
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **{key: accepted[0] for key, accepted, _ in _FIXED_IN_HF},
            **values,
            "num_key_value_heads": self.num_attention_heads,
            "use_cache": True,
        }


def read_hf_config(folder: Path) -> dict[str, Any]:
    """The settings in a folder's config.json; raises ValueError, naming the file, if it cannot be read."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"ModelConfig.from_hf: {path} does not exist; give the folder that holds it")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"ModelConfig.from_hf: {path} is not JSON that can be read ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"ModelConfig.from_hf: {path} must hold a JSON object, it holds a {type(settings).__name__}"
        )
    return settings


def _check_architecture(source: Mapping[str, Any]) -> None:
    # Kimi K2 has a model_type of its own and names the class.
    kind, classes = source.get("model_type"), source.get("architectures")
    named = isinstance(classes, list) and "DeepseekV3ForCausalLM" in classes
    if kind != "deepseek_v3" and not named:
        raise ValueError(
            f"ModelConfig.from_hf: this is not the configuration of a DeepSeek-V3 model: model_type is "
            f'{kind!r} and architectures {classes!r}; "deepseek_v3" or ["DeepseekV3ForCausalLM"] is read'
        )


_MAY_BE_ZERO = {"first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_rope(source: Mapping[str, Any]) -> dict[str, Any]:
    settings = source.get("rope_parameters") or source.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"ModelConfig.from_hf: rotary settings must be an object, got {settings!r}")
    rope = dict(settings)
    found: dict[str, Any] = {"rope_scaling": None}
    for theta in (rope.pop("rope_theta", None), source.get("rope_theta")):
        if theta is not None:
            found["rope_theta"] = theta
            break
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if kind != "default":
        found["rope_scaling"] = {"type": kind, **rope}
    return found


def _checked_yarn(scaling: Mapping[str, Any]) -> dict[str, Any]:
    if scaling.get("type") != "yarn":
        raise ValueError(
            f'ModelConfig: rope_scaling type must be "yarn", got {scaling.get("type")!r}; '
            "write None for plain rotary embedding"
        )
    for key in ("factor", "original_max_position_embeddings"):
        if not (_is_number(scaling.get(key)) and scaling[key] > 0):
            raise ValueError(f"ModelConfig: rope_scaling needs a positive {key!r}, got {scaling.get(key)!r}")
    settings = {**_YARN_DEFAULTS, **{key: value for key, value in scaling.items() if value is not None}}
    if wrong := {key: settings[key] for key in _YARN_DEFAULTS if not _is_number(settings[key])}:
        raise ValueError(f"ModelConfig: rope_scaling settings must be numbers, got {wrong}")
    known = {"type", "factor", "original_max_position_embeddings", *_YARN_DEFAULTS}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(
            f"ModelConfig: rope_scaling has unknown settings {unknown}; choose from {sorted(known)}"
        )
    return settings


_TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "max_position_embeddings": 2048,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
}

_PRESETS: dict[str, dict[str, Any]] = {
    "deepseek-v3": {},
    # The 15.7 B model of the paper's ablations (section 4.5), whose shape DeepSeek-V2-Lite made public. The
    # paper gives no scaling factor for it; 2.446 is that of Moonlight, another public model of this shape.
    "deepseek-v3-16b": {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "intermediate_size": 10944,
        "num_attention_heads": 16,
        "q_lora_rank": None,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.446,
        "num_nextn_predict_layers": 0,
    },
    "small": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "first_k_dense_replace": 1,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "q_lora_rank": 256,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "max_position_embeddings": 8192,
        "n_routed_experts": 32,
        "n_shared_experts": 1,
        "moe_intermediate_size": 256,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
    },
    "tiny": _TINY,
}

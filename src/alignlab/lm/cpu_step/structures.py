"""What the program reads, field by field as in model.h."""

from __future__ import annotations

import ctypes

_POINTER, _WHOLE, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    """A weight in blocks of sixteen outputs."""

    _fields_ = [
        *_fields(_POINTER, "data scales offsets table bias a b"),
        *_fields(_WHOLE, "n_out n_in group scale_kind kind"),
    ]


class Norm(ctypes.Structure):
    """Weights of a norm; all zero where there is none."""

    _fields_ = _fields(_POINTER, "weight bias")


class Layer(ctypes.Structure):
    """One block."""

    _fields_ = (
        _fields(Matrix, "q k v o gate up down")
        + _fields(Norm, "norm1 norm2 post_attn post_mlp q_norm k_norm")
        + _fields(_WHOLE, "window table")
    )


class Model(ctypes.Structure):
    """A whole model."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("head", Matrix),
        ("final", Norm),
        *_fields(_WHOLE, "n_layers d_model n_heads n_kv_heads d_head d_mlp rotary_dim"),
        *_fields(_WHOLE, "centred activation gated parallel half rank"),
        *_fields(_REAL, "eps scale softcap multiplier"),
    ]


class Pass(ctypes.Structure):
    """One pass over new tokens."""

    _fields_ = [
        *_fields(_POINTER, "x positions keys values far_keys far_values"),
        ("cos", _POINTER * 2),
        ("sin", _POINTER * 2),
        *_fields(_POINTER, "hidden logits best total scratch"),
        *_fields(_WHOLE, "batch width columns shared end capacity tiles threads"),
    ]

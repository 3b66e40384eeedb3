"""Arrays of pixels: uint8 ones of NumPy are taken; of others the error says how to convert them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checks import shown
from ..errors import ImageError
from .limits import MAX_PIXELS

_CHANNELS = (1, 3, 4)


def from_array(array: NDArray[Any]) -> Image.Image:
    """A Pillow image of an array [H, W] (grey), [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA).

    Raises:
        ImageError: It is of another type or shape; the message says how to convert it.
    """
    shape = array.shape
    if array.dtype != np.uint8:
        raise ImageError(
            f"an image array holds uint8 values from 0 to 255, not {shown(str(array.dtype))}; {_conversion(array)}"
        )
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))):
        hint = ""
        if array.ndim == 3 and _channels_first(shape):
            hint = "; convert it with image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; list(images) makes a list of pictures of it, Video(images) a video"
        raise ImageError(f"an image array has the shape [H, W], [H, W, 3] or [H, W, 4], not {list(shape)}{hint}")
    if 0 in shape:
        raise ImageError(f"the image array is empty: shape {list(shape)}")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ImageError(f"the image array has the shape {list(shape)}; at most 2^28 pixels are taken")
    return Image.fromarray(np.ascontiguousarray(array))


def is_tensor(value: object) -> bool:
    """Whether it looks like an array of another library: PyTorch, JAX, TensorFlow, CuPy."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, (np.generic, type))


def refused_tensor(value: Any) -> ImageError:
    """What to say about one."""
    module = type(value).__module__.partition(".")[0]
    kind = f"{module}.{type(value).__name__}"
    try:
        shape: tuple[int, ...] = tuple(int(n) for n in value.shape)
    except Exception:  # an unknown dimension, or a class of the caller's own
        shape = ()
    dtype = str(value.dtype).rpartition(".")[2].strip("<>'")
    what = f"an image array is NumPy's, of uint8 values [H, W, 3], not {kind} {list(shape)} of {dtype}"
    line_of = _torch_line if module == "torch" else _numpy_line
    if len(shape) == 4:  # a batch
        return ImageError(f"{what}; convert it with [{line_of('one', shape[1:], dtype)} for one in images]")
    return ImageError(f"{what}; convert it with {line_of('image', shape, dtype)}")


def _conversion(array: NDArray[Any]) -> str:
    """Advice for an array of NumPy's that is not uint8."""
    if array.dtype.kind not in "fiub":
        return "an image array is made of pixels, [H, W, 3]"
    line = _numpy_line("image", array.shape[-3:], str(array.dtype), _largest(array))
    return f"convert it with {line}"


def _largest(array: NDArray[Any]) -> float:
    with np.errstate(all="ignore"):
        return float(np.nanmax(array)) if array.size else 0.0


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in _CHANNELS and shape[2] not in _CHANNELS


def _torch_line(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """One line of PyTorch."""
    line = f"{name}.detach().cpu()"
    if dtype.startswith(("float", "bfloat")):
        line += ".float().clamp(0, 1).mul(255).round().byte()"
    elif dtype != "uint8":
        line += ".byte()"
    if _channels_first(shape):
        line += ".permute(1, 2, 0)"
    return f"{line}.numpy()"


def _numpy_line(name: str, shape: tuple[int, ...], dtype: str, largest: float = 1.0) -> str:
    """One line of NumPy. ``largest``: floats up to 1 are shares of white, others grey levels."""
    array = f"np.asarray({name})"
    if dtype.startswith(("float", "bfloat")):
        scaled = f"np.clip({array}, 0, 1) * 255" if largest <= 1.0 else f"np.clip({array}, 0, 255)"
        line = f"np.rint({scaled}).astype(np.uint8)"
    elif dtype == "uint16":
        line = f"({array} // 257).astype(np.uint8)"
    elif dtype.startswith("bool"):
        line = f"{array}.astype(np.uint8) * 255"
        line = f"({line})" if _channels_first(shape) else line
    elif dtype != "uint8":
        line = f"{array}.astype(np.uint8)"
    else:
        line = array
    if _channels_first(shape):
        line += ".transpose(1, 2, 0)"
    return line

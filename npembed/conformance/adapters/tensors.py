"""torch's tensors in and out. torch itself is handed over by whoever has it; nothing here imports it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from npembed.records.model import Model
from npembed.steps.padding import patch_attention_mask
from npembed.support.typing import Array

Function = Callable[..., Any]


class Tensors:
    """How arrays become tensors, and tensors arrays.

    Parameters
    ----------
    torch : module
    dtype : torch.dtype, optional
        Of the floats; by default that of the model, or of each array.
    device : str
    """

    def __init__(self, torch: Any, dtype: Any = None, device: str = "cpu") -> None:
        self.torch, self.dtype, self.device = torch, dtype, device

    def tensor(self, value: Any) -> Any:
        """An array as a tensor, a list of arrays as a list of them; what is neither stays."""
        if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
            return [self.tensor(element) for element in value]
        if not isinstance(value, np.ndarray):
            return value
        made = self.torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
        return made.to(self.dtype) if self.dtype is not None and made.is_floating_point() else made

    def array(self, value: Any) -> Any:
        """A tensor as an array, bfloat16 as float32, which NumPy has; lists and tuples of them likewise."""
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.array, value))
        if not isinstance(value, self.torch.Tensor):
            return value
        plain = value.detach().cpu()
        return (plain.float() if plain.dtype == self.torch.bfloat16 else plain).numpy()

    def port(self, function: Function) -> Function:
        """A function of tensors -> one of arrays, for the kit: without gradients, the model as it is."""

        @wraps(function)
        def of_arrays(*args: Any, **kwargs: Any) -> Any:
            with self.torch.no_grad():
                named = {name: self.tensor(value) for name, value in kwargs.items()}
                return self.array(function(*map(self.tensor, args), **named))

        return of_arrays

    def state(self, model: Model, prefix: str = "") -> dict[str, Any]:
        """The model's arrays whose names begin so, as tensors, without that beginning: a module's `state_dict`."""
        arrays = ((name.removeprefix(prefix), array) for name, array in model.weights.items() if name.startswith(prefix))
        return {name: self.tensor(array.copy()) for name, array in arrays}

    def load(self, module: Any, model: Model, prefix: str = "", part: bool = False) -> Any:
        """The module in evaluation mode, in the floats' type, with the model's arrays whose names begin so.

        Every array of the module must be among them. With `part` the model may be of the first stages alone: what it lacks
        stays in the module as it is, and every array of the model must have its place instead.
        """
        state = self.state(model, prefix)
        wanted = module.state_dict()
        absent = [name for name in (state if part else wanted) if name not in (wanted if part else state)]
        if absent and part:
            raise ValueError(f"Tensors.load: {type(module).__name__} has no array {absent[0]}, which the model has")
        if absent:
            raise ValueError(f"Tensors.load: the model has no array {prefix}{absent[0]}, which the module needs")
        kind = next(iter(state.values())).dtype
        module = module.to(self.device).to(kind).eval()
        module.load_state_dict({name: state[name] for name in wanted if name in state}, strict=not part)
        return module

    def mask(self, tgt_sizes: Any) -> Any:
        """(B, 2) -> bool (B, Lmax): where the patches are."""
        return self.tensor(patch_attention_mask(_as_array(tgt_sizes))[:, 0])

    def additive_mask(self, tgt_sizes: Any) -> Any:
        """(B, 2) -> float (B, 1, 1, Lmax): 0 for a patch, the least number of the type for padding; to be added to scores."""
        places = self.mask(tgt_sizes)[:, None, None]
        kind = self.dtype or self.torch.float32
        return self.torch.where(places, 0.0, self.torch.finfo(kind).min).to(kind)


def _as_array(value: Any) -> Array:
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)

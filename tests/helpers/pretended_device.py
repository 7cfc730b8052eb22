"""A pretended accelerator: tensors whose data are on the CPU and whose device is not, and a count of what would make the host wait for it.

Every operation runs on the CPU; what reads a value back, copies between host and device without `non_blocking`, or has an output whose shape depends on
values, is counted with the line of code that asked for it. To be used in a process of its own: it registers a device.
"""

import traceback

import torch
import torch.utils.backend_registration
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

torch.utils.backend_registration._setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended:0")
aten = torch.ops.aten
VALUE_SHAPED = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten._local_scalar_dense.default,
    aten.equal.default,
}


class Pretended(torch.Tensor):
    """`data` on the CPU, said to be on `DEVICE`."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=DEVICE,
        )

    def __init__(self, data):
        self.data_on_cpu = data

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of Watch")

    def __repr__(self):
        return f"Pretended({self.data_on_cpu})"

    def tolist(self):
        return self.cpu().tolist()


class Made(TorchFunctionMode):
    """`torch.tensor(values, device=...)`, which no dispatch mode sees: made on the host and copied, with a wait."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            if isinstance(args[0], torch.Tensor):
                return args[0].to(**kwargs)
            del kwargs["device"]
            self.watch.note("torch.tensor")
            values = tree_map(lambda value: value.item() if isinstance(value, torch.Tensor) else value, args)
            return to_device(func(*values, **kwargs))
        return func(*args, **kwargs)


class Watch(TorchDispatchMode):
    """Counts the waits for `DEVICE` within the block."""

    def __init__(self):
        super().__init__()
        self.waits = []
        self.made = Made(self)

    def __enter__(self):
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.made.__exit__(*error)

    def note(self, what):
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and __file__ != f.filename]
        self.waits.append((what, f"{frames[-1].filename}:{frames[-1].lineno}"))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        known = {}

        def unwrap(value):
            if isinstance(value, Pretended):
                known[id(value.data_on_cpu)] = value
                return value.data_on_cpu
            return value

        on_device = tree_any(lambda v: isinstance(v, Pretended), (args, kwargs))
        target = kwargs.get("device")
        wrap = on_device
        if target is not None:
            wrap = torch.device(target).type == DEVICE.type
            kwargs["device"] = torch.device("cpu")
        if self._waits(func, args, kwargs, on_device, wrap):
            self.note(str(func))
        plain_args, plain_kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
        out = func(*plain_args, **plain_kwargs)

        def rewrap(value):
            if not isinstance(value, torch.Tensor):
                return value
            same = known.get(id(value))
            return Pretended(value) if same is None else same

        return tree_map(rewrap, out) if wrap else out

    @staticmethod
    def _waits(func, args, kwargs, on_device, wrap):
        if func is aten._to_copy.default:
            return isinstance(args[0], Pretended) != wrap and not kwargs.get("non_blocking")
        if func is aten.copy_.default:
            crosses = isinstance(args[0], Pretended) != isinstance(args[1], Pretended)
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking")
            return crosses and args[1].ndim > 0 and not non_blocking
        if not on_device:
            return False
        if func in VALUE_SHAPED:
            return True
        if func is aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return False


def to_device(tensor):
    return Pretended(tensor.detach())


def move(module):
    """The parameters and buffers of a module, said to be on `DEVICE`."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = to_device(tensor)
    return module

"""The attributes that torch.amp.GradScaler sets on an optimizer that unscales gradients itself."""

from typing import Any


class ForOneStep:
    """An attribute that one step takes away.

    torch.amp.GradScaler sets ``grad_scale`` and ``found_inf`` before a step and deletes them after
    it. If the step raised, they would stay, and later steps would divide by an old scale. To delete
    a value that a step has taken is no error.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return instance.__dict__[self._name]
        except KeyError:
            name = type(instance).__name__
            raise AttributeError(f"{name!r} object has no attribute {self._name!r}") from None

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value

    def __delete__(self, instance: Any) -> None:
        instance.__dict__.pop(self._name, None)

"""What a family of models is: a config translation there and back, and a table of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5x_scale.interop.families.fields import Fields
from t5x_scale.interop.mapping import Row
from t5x_scale.models.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of another system's models.

    Attributes:
      name: as `model_type` in a config.json.
      architectures: names of the classes, as in `architectures` of a config.json; the first one is written.
      read_config: from the fields of a config.json to an architecture.
      write_config: back; `model_type`, `architectures` and dtypes are added by the registry.
      rows: the table of tensors of an architecture.
      ignored: regular expressions of tensors that may be there and mean nothing: buffers that are worked out anew.
      aliases: pairs of a regular expression and its replacement: tensors that have also been called otherwise.
      absorbed: attributes of an architecture that the table takes care of, so that the configuration need not say
        them: of two architectures that differ in these only, the same tensors are written.
    """

    name: str
    architectures: tuple[str, ...]
    read_config: Callable[[Fields], Architecture]
    write_config: Callable[[Architecture], dict[str, Any]]
    rows: Callable[[Architecture], list[Row]]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    absorbed: tuple[str, ...] = ()

    def to_architecture(self, config: Mapping[str, Any]) -> Architecture:
        """The architecture that a config.json describes.

        Raises:
          UserError: a field is missing, or has a value that is not supported.
        """
        fields = Fields(config)
        fields.unsupported("quantization_config")
        fields.unsupported("use_bidirectional_attention", False)
        return self.read_config(fields)

"""Where models are: on a device each, spread over several, one teacher held by several processes, or on servers."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from rsd.settings import FREE, PROCESSES, SPEED, called, setting, shown

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's device maps


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Where a model is. A device is one device; a device map spreads its layers over all GPUs.

    Raises:
        ValueError: both are given, or a map as a device.
    """

    device: str | None = setting(
        None,
        SPEED,
        help="One device: cpu, cuda, cuda:1 ...",
        unset="cuda where there is one",
        resume=FREE,
        kind="device",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = setting(
        None, SPEED, help="Spread the layers over all GPUs", resume=FREE
    )

    def __post_init__(self) -> None:
        for whose in ("", "teacher_", "student_"):
            device, spread = getattr(self, f"{whose}device", None), getattr(self, f"{whose}device_map", None)
            name, wide = called(f"{whose}device"), f"{whose}device_map"
            if device in MAPS:
                raise ValueError(f"{name} {device} is a map and no device: give {called(wide, device)}")
            if device and spread:
                raise ValueError(f"{name} and {called(wide)} both say where a model is: give one")

    def place_of(self, role: str) -> str | None:
        """The device or the device map that was asked for."""
        return self.device or self.device_map

    def on_one_device(self) -> bool:
        """Whether every model is on one device, in one process."""
        return self.device_map is None


@dataclass(frozen=True, kw_only=True)
class PairPlacing(Placing):
    """Where the models of a pair are; what is said of one wins over what is said of both."""

    teacher_device: str | None = setting(
        None, SPEED, help="Of the teacher alone", unset="--device", resume=FREE, kind="device"
    )
    student_device: str | None = setting(
        None, SPEED, help="Of the student alone", unset="--device", resume=FREE, kind="device"
    )
    teacher_device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = setting(
        None, SPEED, help="Of the teacher alone", unset="--device-map", resume=FREE
    )
    student_device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = setting(
        None, SPEED, help="Of the student alone", unset="--device-map", resume=FREE
    )

    def place_of(self, role: str) -> str | None:
        device, spread = (getattr(self, f"{role}_{what}") for what in ("device", "device_map"))
        return device or spread or super().place_of(role)

    def on_one_device(self) -> bool:
        return not (self.device_map or self.teacher_device_map or self.student_device_map)


@dataclass(frozen=True, kw_only=True)
class TeacherPlacing(PairPlacing):
    """The same, where several processes may hold the teacher together.

    Raises:
        ValueError: the teacher cannot be held like that.
    """

    tensor_parallel: int = setting(
        1,
        PROCESSES,
        help="Processes of a launch (torchrun) that hold one teacher together",
        resume=FREE,
        whole=(1, 1024),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tensor_parallel > 1 and (self.teacher_device or self.teacher_device_map or self.device_map):
            raise ValueError(
                f"{called('tensor_parallel')} says where the teacher is: leave {called('teacher_device')}, "
                f"{called('teacher_device_map')} and {called('device_map')} out"
            )

    def place_of(self, role: str) -> str | None:
        if role == "teacher" and self.tensor_parallel > 1:
            return None
        return super().place_of(role)

    def on_one_device(self) -> bool:
        return super().on_one_device() and self.tensor_parallel == 1


def is_address(teacher: str) -> bool:
    return teacher.lower().startswith(("http://", "https://"))


def check_address(url: str) -> None:
    """Whether a server can be asked there.

    Raises:
        ValueError: it cannot; what may be a key in it is not shown.
    """
    if {*"@?#"} & {*url}:
        key = "put the key into the environment as RSD_TEACHER_API_KEY"
        raise ValueError(f"{called('teacher')}: no keys in the address; {key}")
    try:
        parts = urlsplit(url)
        possible = bool(parts.hostname) and parts.port != 0 and url.isprintable() and not {*" \\"} & {*url}
    except ValueError:
        possible = False
    if not possible:
        raise ValueError(f"{called('teacher')}: {shown(url)} is no address of a server, such as http://host:8000/v1")

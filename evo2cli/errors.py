"""What a user can do wrong, as exceptions whose message is one line: what is wrong, then what to do."""


class UserError(Exception):
    """Wrong input or a wrong request; the command line prints the message and exits with 1."""


class UsageError(UserError):
    """Options that do not fit together; the command line prints the message and exits with 2."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine has no more memory. For the CPU, PyTorch raises a plain RuntimeError."""
    no_room_on_cpu = "DefaultCPUAllocator: can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or no_room_on_cpu

"""`evo2 info`: what this installation has to run on."""

from evo2cli.cli.options import Json


def info(as_json: Json = False) -> None:
    """Show versions, devices, the kernels in use, and what is missing and how to get it."""
    import json

    from evo2cli.measure import environment

    sections = {
        "versions": environment.versions(),
        "devices": environment.devices(),
        "kernels": environment.kernels(),
        "packages": environment.packages(),
        "models": environment.models(),
    }
    if as_json:
        print(json.dumps(sections, indent=2))
        return
    for section, facts in sections.items():
        print(section)
        for name, value in facts.items():
            print(f"  {name:<10} {value}")

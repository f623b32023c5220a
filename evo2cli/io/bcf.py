"""BCF files from the text of a VCF file.

BCF stores names as numbers of the header's definitions, so what the header does not declare has to be declared first;
and htslib ends its process where it cannot write a record, so that it has one of its own.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from evo2cli.errors import UserError
from evo2cli.io.vcf import definition

_WRITE = """
import sys, pysam
from pysam import bcftools
target = sys.argv[1]
bcftools.view("--no-version", "-Ob", "-o", target, "-", catch_stdout=False)
with pysam.VariantFile(target) as file:
    print(sum(1 for _ in file), end="", flush=True)
try:
    bcftools.index("--csi", target)
    print(" indexed", end="")
except pysam.SamtoolsError:
    pass
"""


def write_bcf(vcf: Path, target: Path, shown: str) -> bool:
    """Write the records of the text file `vcf` as BCF, and say whether it has an index: where they are sorted.

    UserError, with the output called `shown`, where htslib cannot do that or does not read all of them back. Names
    that the header lacks are declared: INFO, FORMAT and FILTER as strings or flags, contigs without a length.
    """
    declarations = [line.encode("utf-8", "surrogateescape") + b"\n" for line in _undeclared(vcf)]
    command = [sys.executable, "-c", _WRITE, str(target)]
    with tempfile.TemporaryFile() as said, open(vcf, "rb") as lines:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            records = _feed(lines, declarations, child.stdin)
            count, _, indexed = child.stdout.read().decode().partition(" ")
        said.seek(0)
        complaints = [line for line in said.read().decode("utf-8", "replace").splitlines() if line.startswith("[E::")]
    if child.returncode or count != str(records):
        reason = complaints[0] if complaints else f"it wrote {count or 'none'} of {records} records"
        remedy = "make room for it" if "write failed" in reason else "write .vcf.gz instead"
        raise UserError(f"htslib cannot write {shown} as BCF ({reason}); {remedy}")
    return bool(indexed)


def _feed(lines: Iterable[bytes], declarations: list[bytes], pipe: IO[bytes]) -> int:
    """The number of records, all of them offered to the process at the other end of the pipe."""
    records = 0
    try:
        for line in lines:
            if line.startswith(b"#CHROM"):
                pipe.writelines(declarations)
            records += not line.startswith(b"#")
            pipe.write(line)
        pipe.close()
    except BrokenPipeError:
        pass  # its exit code tells more
    return records


def _undeclared(vcf: Path) -> list[str]:
    """Definitions of all that the records name and the header does not define."""
    known: set[tuple[str, str]] = set()
    found: dict[tuple[str, str], str] = {}
    with open(vcf, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            if line.startswith("##"):
                kind, values = definition(line)
                known.add((kind, values.get("ID", "")))
            elif not line.startswith("#"):
                found |= {key: text for key, text in _names(line.rstrip("\r\n").split("\t")) if key not in found}
    return [text for key, text in found.items() if key not in known]


def _names(columns: list[str]) -> Iterable[tuple[tuple[str, str], str]]:
    yield ("contig", columns[0]), f"##contig=<ID={columns[0]}>"
    for name in columns[6].split(";"):
        if name not in (".", "", "PASS"):
            yield ("FILTER", name), f'##FILTER=<ID={name},Description="not declared in the input">'
    for field in columns[7].split(";"):
        name, equals, _ = field.partition("=")
        kind = "Number=.,Type=String" if equals else "Number=0,Type=Flag"
        if name not in (".", ""):
            yield ("INFO", name), f'##INFO=<ID={name},{kind},Description="not declared in the input">'
    for name in columns[8].split(":") if len(columns) > 8 else ():
        if name not in (".", ""):
            kind = "Number=1,Type=String" if name == "GT" else "Number=.,Type=String"
            yield ("FORMAT", name), f'##FORMAT=<ID={name},{kind},Description="not declared in the input">'

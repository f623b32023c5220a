"""Where a model puts out NaN or infinity, nobody gets a number: an error names the first layer, or a status says so."""

import json
import math

import pytest
import torch
from fake_model import COLUMNS, CONTIG

from evo2cli import Evo2
from evo2cli.cli.app import main
from evo2cli.inference.finite import NotFiniteError
from stripedhyena2 import Config, save_model
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2, context=64)


@pytest.fixture(params=["nan", "inf", "overflow"], scope="module")
def broken(request, tmp_path_factory):
    """A checkpoint that is broken in a layer, and what the error says of it."""
    model, path = new_model(CONFIG, seed=0), tmp_path_factory.mktemp("models") / request.param
    with torch.no_grad():
        if request.param == "overflow":  # 4 e30 squared is more than float32 holds
            for w in (model.blocks[2].mlp.w1.weight, model.blocks[2].mlp.w2.weight):
                w.fill_(1e30)
            says = "output is NaN or infinite, first in layer blocks.2.mlp.w3, computed in float32"
        else:
            model.get_parameter("blocks.1.mixer.in_proj.weight")[3, 4] = float(request.param)
            says = "weights hold NaN or infinity, first in layer blocks.1.mixer.in_proj (blocks.1.mixer.in_proj.weight)"
    save_model(model, path)
    return path, says


@pytest.fixture
def evo2(broken, tmp_path, monkeypatch, capfd):
    """Run a command with the broken model; what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.fa").write_text(f">c1\n{CONTIG}\n")
    (tmp_path / "in.vcf").write_text(f"{COLUMNS}\nc1\t30\t.\t{CONTIG[29]}\tGATT,T,<DEL>\t.\t.\t.\n")

    def run(*args):
        assert main([*args, "--model", str(broken[0]), "--device", "cpu"]) == 1
        return capfd.readouterr()

    return run


@pytest.mark.parametrize(
    "command",
    [
        ["score", "s.fa", "-o", "out"],
        ["score", "s.fa", "-o", "out", "--strand", "both", "--chunk", "7", "--per-position", "out.npz"],
        ["embed", "s.fa", "--layer", "-1", "-o", "out.npz"],
        ["embed", "s.fa", "--layer", "norm", "--window", "16", "--pool", "none", "-o", "out.npz"],
        ["generate", "-p", "ACGT", "-n", "3", "-O", "jsonl", "-o", "out"],
    ],
)
def test_an_error_names_the_first_layer_and_nothing_is_written(evo2, broken, tmp_path, command):
    assert broken[1] in evo2(*command).err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("options", [[], ["--tile"]])
def test_variants_have_a_status_in_place_of_a_score(evo2, tmp_path, options):
    err = evo2(
        "score-variants", "in.vcf", "-f", "s.fa", "--window", "32", "-O", "jsonl", "-o", "out.jsonl", *options
    ).err
    assert "2 of 3 alleles have the status NOT_FINITE" in err
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["EVO2_STATUS"] for line in lines] == ["NOT_FINITE", "NOT_FINITE", "SYMBOLIC"]
    assert {line[key] for line in lines for key in ("EVO2_DELTA", "EVO2_REF_LL", "EVO2_ALT_LL")} == {None}


def test_the_library_raises_it_too(broken):
    model = Evo2(str(broken[0]), device="cpu")
    with pytest.raises(NotFiniteError):
        model.score_sequences(["GATTACA"])
    with pytest.raises(NotFiniteError):
        model.generate(["GATTACA"], n_tokens=2)


def test_an_allele_that_alone_overflows_leaves_the_others_their_scores(tmp_path, monkeypatch, capfd):
    from fake_model import FakeModel

    from evo2cli.models import open as models

    class Fragile(FakeModel):
        def hidden(self, ids, state, n_blocks=None):
            x, state = super().hidden(ids, state, n_blocks)
            return x.masked_fill((ids == ord("N"))[..., None], math.inf), state

    monkeypatch.setattr(models, "open_model", lambda *args, **options: Fragile().eval())
    (tmp_path / "s.fa").write_text(f">c1\n{CONTIG[:40]}{'N' * 3}{CONTIG[43:]}\n")
    rows = [f"c1\t{p}\t.\t{CONTIG[p - 1]}\tGATT\t.\t.\t.\n" for p in (8, 40)]
    (tmp_path / "in.vcf").write_text(f"{COLUMNS}\n{''.join(rows)}")
    options = ["--window", "16", "-O", "jsonl"]
    assert main(["score-variants", str(tmp_path / "in.vcf"), "-f", str(tmp_path / "s.fa"), *options]) == 1
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["EVO2_STATUS"] for line in lines] == ["OK", "NOT_FINITE"]
    assert isinstance(lines[0]["EVO2_DELTA"], float)

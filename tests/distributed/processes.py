"""Real processes on the loopback network, started once and given function after function to run."""

from __future__ import annotations

import datetime
import multiprocessing
import traceback

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
TIMEOUT = datetime.timedelta(seconds=120)


class Processes:
    """`n` processes of one gloo group."""

    def __init__(self, n, store):
        self.n = n
        self.pipes, self.workers = [], []
        for rank in range(n):
            ours, theirs = CONTEXT.Pipe()
            worker = CONTEXT.Process(target=_work, args=(rank, n, str(store), theirs), daemon=True)
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)

    def run(self, function, *args):
        """What function(*args) returns on each rank; its tensors come as arrays."""
        for pipe in self.pipes:
            pipe.send((function, args))
        answers = [pipe.recv() for pipe in self.pipes]
        failures = [f"rank {rank}:\n{answer}" for rank, (ok, answer) in enumerate(answers) if not ok]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def stop(self):
        for pipe in self.pipes:
            pipe.close()
        for worker in self.workers:
            worker.join()


def _work(rank, n, store, pipe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n, timeout=TIMEOUT)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((True, _arrays(function(*args))))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


def _arrays(value):
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, dict):
        return {key: _arrays(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_arrays(v) for v in value)
    return value

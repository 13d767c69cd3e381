"""Which processes are the ranks of a run, and how far the run has come: for tests that kill ranks."""
import json
import os
import signal

from spin import finish


def processes_below(pid):
    """All processes below pid, by /proc."""
    out, todo = [], [pid]
    while todo:
        p = todo.pop()
        try:
            for task in os.listdir(f"/proc/{p}/task"):
                with open(f"/proc/{p}/task/{task}/children") as f:
                    children = [int(c) for c in f.read().split()]
                out += children
                todo += children
        except OSError:
            pass
    return out


def ranks_of(launcher):
    """Process ids of the ranks under mpirun, by rank."""
    found = {}
    for pid in processes_below(launcher):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                for item in f.read().split(b"\0"):
                    if item.startswith((b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=")):
                        found[int(item.split(b"=")[1])] = pid
        except (OSError, ValueError):
            pass
    return found


def kill_a_rank(p, rng):
    """SIGKILL of a random rank of the run; gives the result of the run."""
    victims = ranks_of(p.pid)
    if victims:
        try:
            os.kill(victims[rng.choice(sorted(victims))], signal.SIGKILL)
        except ProcessLookupError:
            pass
    return finish(p)


def events(out):
    """The whole lines of events.jsonl; a kill may have cut one."""
    found = []
    try:
        with open(os.path.join(out, "events.jsonl")) as f:
            for line in f:
                try:
                    found.append(json.loads(line))
                except ValueError:
                    pass
    except OSError:
        pass
    return found


def last_phase(out):
    seen = events(out)
    return seen[-1]["phase"] if seen else "start"


class Tail:
    """Events of a run as they come, each once."""

    def __init__(self, out):
        self.path, self.at, self.rest = os.path.join(out, "events.jsonl"), 0, b""
        try:
            self.at = os.path.getsize(self.path)
        except OSError:
            pass

    def new(self):
        try:
            with open(self.path, "rb") as f:
                f.seek(self.at)
                data = f.read()
        except OSError:
            return []
        self.at += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                pass
        return found

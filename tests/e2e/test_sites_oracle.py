#!/usr/bin/env python3
"""Kurtosis and QSUR of captured inputs of down_proj, before and after R4, against numpy."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, oracle  # noqa: E402


class SitesOracle(Case):
    def test_as_numpy(self):
        rows, turned = self.path("rows.f32"), self.path("turned.f32")
        width = oracle(STORIES, TEXT, 4, rows, script="site_oracle.py")["width"]
        r = subprocess.run([os.environ["SPINSHARD_TOOL_STATS"], rows, str(width), turned], capture_output=True, text=True, check=True)
        ours, theirs = json.loads(r.stdout), oracle("--judge", rows, turned, width, script="site_oracle.py")
        self.assertLess(theirs["lengths"], 1e-5)
        for side in ("before", "after"):
            for key in ("kurtosis", "max_over_rms"):
                self.assertLess(abs(ours[side][key] / theirs[side][key] - 1), 1e-9, f"{key} {side}")
            self.assertLess(abs(ours[side]["log_qsur"] - theirs[side]["log_qsur"]), 1e-3)
        self.assertLess(ours["after"]["kurtosis"], ours["before"]["kurtosis"])


if __name__ == "__main__":
    main()

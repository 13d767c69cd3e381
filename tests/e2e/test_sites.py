#!/usr/bin/env python3
"""inspect --sites: what GPTQ saw is told for every layer and input; before rotation it is what a run without rotations sees;
volumes are left alone by rotations. Against numpy: test_sites_oracle.py."""
import math
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, result_hashes, settings  # noqa: E402

CALIB = ["--calib", TEXT, *settings("calib.windows=6", "calib.window=96", "weights.method=gptaq", "weights.target=full",
                                     "weights.group=channel")]


class Sites(Case):
    def run_sites(self, name, *more, **how):
        out = self.path(name)
        self.good("quantize", "--model", STORIES, "--out", out, *CALIB, *settings(*more), **how)
        layers = self.good("inspect", out, "--sites", "--json").json()["layers"]
        self.assertEqual([x["layer"] for x in layers], list(range(5)))
        for layer in layers:
            self.assertEqual([s["site"] for s in layer["sites"]], ["attention", "o", "mlp", "down"])
        return layers

    def test_before_is_what_nothing_rotated_sees(self):
        plain = self.run_sites("plain", "rotate.r1=false", "rotate.r2=none", "rotate.online=[]")
        turned = self.run_sites("turned", "rotate.start=had", "rotate.online=[r4]", "rotate.r4_block=pow2",
                                "scale.pairs=[vo, ud]", "scale.start=closed")
        for a, b in zip(plain, turned):
            for k, (p, t) in enumerate(zip(a["sites"], b["sites"])):
                self.assertEqual(p["before"], p["after"])
                for s in (t["before"], t["after"]):
                    self.assertLess(abs(sum(s["shares"]) - 1), 0.05)  # all but what is near zero
                    self.assertLessEqual(s["edges"][-1], s["max_over_rms"] * 1.001)
                if k in (1, 3):  # norms without rotation keep their gain; entries are bf16, of weights fused in another order
                    for key in ("kurtosis", "rms", "token_max_over_rms"):
                        self.assertLess(abs(t["before"][key] / p["before"][key] - 1), 0.03, f"{key} of {t['site']}, layer {a['layer']}")

    def test_rotations_leave_volumes_alone(self):
        for layer in self.run_sites("had", "rotate.start=had", "rotate.online=[r4]", "rotate.r4_block=pow2", ranks=2):
            for s in layer["sites"]:
                b, a = s["before"], s["after"]
                self.assertLess(abs(a["rms"] / b["rms"] - 1), 0.002)
                gain = math.log(b["max_over_rms"] * b["rms"] / (a["max_over_rms"] * a["rms"]))
                self.assertLess(abs(a["log_qsur"] - b["log_qsur"] - gain), 0.004)

    def test_the_archive_does_not_know(self):
        with_, without = self.path("with"), self.path("without")
        self.good("quantize", "--model", STORIES, "--out", with_, *CALIB)
        self.good("quantize", "--model", STORIES, "--out", without, *CALIB, "--report", "off")
        self.assertEqual(result_hashes(with_), result_hashes(without))
        self.bad(3, ["inputs"], "inspect", without, "--sites")

    def test_nothing_to_tell(self):
        out = self.path("rtn")
        self.good("quantize", "--model", STORIES, "--out", out)
        self.bad(3, ["gptq"], "inspect", out, "--sites")
        self.run_sites("told")
        self.assertIn("kurtosis", self.good("inspect", self.path("told"), "--sites").out)


if __name__ == "__main__":
    main()

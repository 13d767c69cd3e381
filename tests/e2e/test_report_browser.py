#!/usr/bin/env python3
"""The page of a report in a browser: no message on the console, every chart is of some size, nothing wider than the window at
800 and 1600 pixels."""
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, settings, skip  # noqa: E402

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
PROBE = """<iframe id=f style="border:0;width:%dpx;height:900px" src="report.html"></iframe><script>
f.onload = () => { const d = f.contentDocument, s = [...d.querySelectorAll('svg')].map(x => x.getBoundingClientRect());
document.title = 'probe ' + s.length + ' ' + s.filter(r => r.width > 200 && r.height > 100).length + ' ' +
(d.documentElement.scrollWidth - %d); };</script>"""


class Browser(Case):
    def look(self, page):
        r = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
                            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", "--enable-logging=stderr",
                            "--user-data-dir=" + self.path("profile"), "--dump-dom", "file://" + page],
                           capture_output=True, text=True, timeout=120)
        self.assertNotIn("CONSOLE", r.stderr)
        return r.stdout

    def test_in_a_browser(self):
        out = self.path("out")
        self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *settings(
            "calib.windows=6", "calib.window=96", "weights.method=gptq", "weights.group=channel", "rotate.start=had"))
        self.assertIn("Before and after", self.look(os.path.join(out, "report.html")))
        for width in (800, 1600):
            with open(os.path.join(out, "probe.html"), "w", encoding="utf-8") as f:
                f.write(PROBE % (width, width))
            found = re.search(r"<title>probe (\d+) (\d+) (-?\d+)", self.look(os.path.join(out, "probe.html")))
            self.assertIsNotNone(found)
            charts, large, beyond = map(int, found.groups())
            self.assertGreater(charts, 40)
            self.assertEqual(large, charts, f"{width} pixels")
            self.assertLessEqual(beyond, 0, f"{width} pixels")


if __name__ == "__main__":
    if not BROWSER:
        skip("no Chromium here")
    main()

#!/usr/bin/env python3
"""The page of a report in a browser, alone and with runs beside it: no message on the console, every chart is of some size, no
word in it is cut off or lies on another, nothing is wider than the window at 800 and 1600 pixels."""
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TEXT, Case, main, settings, skip  # noqa: E402

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
PROBE = """<iframe id=f style="border:0;width:%dpx;height:900px" src="%s"></iframe><script>
const box = x => x.getBoundingClientRect();
f.onload = () => {
  const d = f.contentDocument, charts = [...d.querySelectorAll('svg:not(.k)')];
  let cut = 0, on = 0;
  for (const chart of charts) {
    const c = box(chart), words = [...chart.querySelectorAll('text')].map(box);
    cut += words.filter(w => w.left < c.left - 1 || w.right > c.right + 1 || w.top < c.top - 1 || w.bottom > c.bottom + 1).length;
    words.forEach((a, i) => words.slice(i + 1).forEach(b => {
      on += Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
    }));
  }
  document.title = ['probe', charts.length, charts.map(box).filter(r => r.width > 200 && r.height > 100).length,
                    d.documentElement.scrollWidth - %d, cut, on].join(' ');
};</script>"""


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
        page, probe = os.path.join(out, "beside.html"), os.path.join(out, "probe.html")
        self.good("quantize", "--model", STORIES, "--out", out, "--calib", TEXT, *settings(
            "calib.windows=6", "calib.window=96", "weights.method=gptq", "weights.group=channel", "rotate.start=had"))
        named = shutil.copytree(out, self.path("a-run-with-a-long-name"))
        self.good("report", out, "--beside", named, "--beside", named, "--beside", named, "--html", page)
        self.assertIn("Before and after", self.look(os.path.join(out, "report.html")))
        self.assertIn("4 runs beside each other", self.look(page))
        for width, name, least in ((800, "report.html", 40), (1600, "report.html", 40), (800, "beside.html", 50)):
            with open(probe, "w", encoding="utf-8") as f:
                f.write(PROBE % (width, name, width))
            found = re.search(r"<title>probe (\d+) (\d+) (-?\d+) (\d+) (\d+)<", self.look(probe))
            self.assertIsNotNone(found)
            charts, large, beyond, cut, on_another = map(int, found.groups())
            at = f"{name}, {width} pixels"
            self.assertGreater(charts, least, at)
            self.assertEqual(large, charts, at)
            self.assertLessEqual(beyond, 0, at)
            self.assertEqual((cut, on_another), (0, 0), at)


if __name__ == "__main__":
    if not BROWSER:
        skip("no Chromium here")
    main()

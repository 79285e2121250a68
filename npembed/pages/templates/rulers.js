// Two rulers: the patches of an axis above, the buckets of the position table below, under one rule or two.
const RULER_WIDTH = 1000;

// options: side, one {name, ruler, edges}, two (the same or null), differ (the patches whose buckets do), patch, pick(patch)
function drawRuler(svg, output, options) {
  const { side, one, two, patch } = options, n = one.ruler.n;
  svg.replaceChildren();
  const lines = two ? [one, two] : [one], height = two ? 128 : 84;
  svg.setAttribute("viewBox", `-8 0 ${RULER_WIDTH + 16} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.height = height + "px";
  const cells = make(svg, "g"), differs = new Set(two ? options.differ : []);
  for (let i = 0; i < n; i++) {
    const from = startOf(one.ruler, i) * RULER_WIDTH, to = i + 1 < n ? startOf(one.ruler, i + 1) * RULER_WIDTH : RULER_WIDTH;
    const names = ["patch", i % 2 ? "odd" : "", differs.has(i) ? "differs" : "", i === patch ? "now" : ""];
    make(cells, "rect", { x: from, y: 14, width: Math.max(to - from, 0.4), height: 20, class: names.filter(Boolean).join(" ") });
  }
  for (const [i] of one.ruler.on) {
    const x = startOf(one.ruler, i) * RULER_WIDTH;
    make(svg, "path", { d: `M${x - 5},0h10l-5,12z`, class: "on" });
  }
  lines.forEach((line, row) => {
    const top = 58 + row * 44, used = new Set(line.ruler.buckets);
    for (let k = 0; k < side; k++) {
      const from = edgeOf(line, k, side) * RULER_WIDTH, to = edgeOf(line, k + 1, side) * RULER_WIDTH;
      const names = ["bucket", used.has(k) ? "used" : "", k === line.ruler.buckets[patch] ? "now" : ""];
      make(svg, "rect", { x: from, y: top, width: Math.max(to - from, 0), height: 20, class: names.filter(Boolean).join(" ") });
    }
    const x = startOf(line.ruler, patch) * RULER_WIDTH, bucket = line.ruler.buckets[patch];
    if (bucket === undefined) return;
    const middle = (edgeOf(line, bucket, side) + edgeOf(line, bucket + 1, side)) / 2 * RULER_WIDTH;
    make(svg, "path", { d: row ? `M${middle},${top - 10}L${middle},${top}` : `M${x},34L${x},44L${middle},${top}`, class: "drop",
      "vector-effect": "non-scaling-stroke" });
  });
  output.textContent = patchWords(options, patch);
  svg.onpointermove = (event) => { if (event.pointerType !== "touch") hover(event, false); };
  svg.onpointerdown = (event) => hover(event, true);
  function hover(event, press) {
    const [across, down] = shareOf(event, svg), place = (across * (RULER_WIDTH + 16) - 8) / RULER_WIDTH;
    if (down * height < 46) {
      let i = 0;
      while (i + 1 < n && startOf(one.ruler, i + 1) <= place) i++;
      if (press && options.pick) options.pick(i); else output.textContent = patchWords(options, i);
    } else {
      const line = lines[Math.min(lines.length - 1, Math.floor((down * height - 52) / 44))] || one;
      let k = 0;
      while (k + 1 < side && edgeOf(line, k + 1, side) <= place) k++;
      output.textContent = bucketWords(line, k, side);
    }
  }
  svg.onpointerleave = () => { output.textContent = patchWords(options, patch); };
}

// Only where things are drawn: a rule without coordinates has its patches side by side.
const startOf = (ruler, i) => (ruler.coords && ruler.coords[i] !== undefined ? ruler.coords[i] : i / ruler.n);
function edgeOf(line, k, side) {
  if (k <= 0) return 0;
  if (k >= side) return 1;
  return line.edges ? line.edges[k - 1] : k / side;
}

const WHERE = {
  below: (k) => `In exact arithmetic it begins on boundary ${k}; the rule's own numbers put it just below.`,
  on: (k) => `It lies on boundary ${k}: the two numbers are equal.`,
  above: (k) => `In exact arithmetic it begins on boundary ${k}; the rule's own numbers put it just above.`,
  exact: (k) => `It begins on boundary ${k}, by whole numbers.`,
};

function patchWords({ one, two, differ }, i) {
  const words = [one, two].filter(Boolean).map((line) => {
    const at = line.ruler.coords ? `coordinate ${line.ruler.coords[i]}` : "no coordinate: whole numbers";
    const mark = line.ruler.on.find(([patch]) => patch === i);
    return `${line.name}: ${at}, bucket ${line.ruler.buckets[i]}.` + (mark ? ` ${WHERE[mark[2]](mark[1])}` : "");
  });
  const differs = two && differ.includes(i) ? " The two differ." : "";
  return `Patch ${i} of ${one.ruler.n}. ${words.join(" ")}${differs}`;
}

function bucketWords(line, k, side) {
  const inside = line.ruler.buckets.map((b, i) => (b === k ? i : -1)).filter((i) => i >= 0);
  const from = k === 0 ? "the beginning" : line.edges ? line.edges[k - 1] : `${k}/${side}`;
  const to = k + 1 === side ? "the end" : line.edges ? line.edges[k] : `${k + 1}/${side}`;
  const patches = inside.length ? `patch${inside.length > 1 ? "es" : ""} ${inside.join(", ")}` : "no patch";
  return `${line.name}: bucket ${k} of ${side}, from ${from} to ${to}: ${patches}.`;
}

function rulerKeys(svg, count, now, pick) {
  svg.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const target = event.key === "Home" ? 0 : event.key === "End" ? count - 1 : step ? now + step : -1;
    if (target < 0 || target >= count) { if (step) event.preventDefault(); return; }
    event.preventDefault();
    pick(target);
  };
}

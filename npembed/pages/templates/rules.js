// The rules against the original, and two of them on the rulers.
const chosen = { one: DATA.original, two: DATA.first[0], n: DATA.first[1], patch: 0 };
const rows = [...document.querySelectorAll(".rule")];
const span = () => Math.min(DATA.up_to, Number($("span").value));

function drawRow(row) {
  const counts = DATA.counts[row.dataset.rule], canvas = row.querySelector("canvas");
  heat(canvas, 1, span(), (i) => counts[i] ? 0.25 + 0.75 * counts[i] / (i + 1) : 0);
}
function cellWords(rule, n) {
  const count = DATA.counts[rule][n - 1];
  return `${rule}, n = ${n}: ${count ? `${count} of ${n} patch${n > 1 ? "es" : ""} differ${count === 1 ? "s" : ""}` : "no patch differs"} from ${DATA.original}.`;
}
rows.forEach((row) => {
  const rule = row.dataset.rule, canvas = row.querySelector("canvas"), about = row.querySelector(".about"), button = row.querySelector("button");
  let n = Math.min(DATA.first[1], DATA.up_to);
  const at = (event) => Math.max(1, Math.min(span(), Math.floor(shareOf(event, canvas)[0] * span()) + 1));
  const say = () => { $("cell").textContent = cellWords(rule, n); canvas.setAttribute("aria-valuenow", n); canvas.setAttribute("aria-valuetext", cellWords(rule, n)); };
  const pick = () => { Object.assign(chosen, { one: DATA.original, two: rule, n, patch: firstDiffering(rule, n) }); drawPair(); };
  canvas.addEventListener("pointermove", (event) => { n = at(event); say(); });
  canvas.addEventListener("click", (event) => { n = at(event); say(); pick(); });
  canvas.addEventListener("focus", () => { n = Math.min(n, span()); say(); });
  canvas.addEventListener("keydown", (event) => {
    const target = { ArrowRight: n + 1, ArrowUp: n + 1, ArrowLeft: n - 1, ArrowDown: n - 1, Home: 1, End: span() }[event.key];
    if (event.key === "Enter" || event.key === " ") pick();
    else if (target === undefined) return;
    else { n = Math.max(1, Math.min(span(), target)); say(); }
    event.preventDefault();
  });
  button.addEventListener("click", () => { about.hidden = !about.hidden; button.setAttribute("aria-expanded", String(!about.hidden)); });
});

// Filters
const compareVersions = (a, b) => { // as far as the shorter of the two goes: 4.55 is in 4.55.0 to 4.55.4
  for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return a[i] - b[i];
  return 0;
};
function filter() {
  const software = $("software").value, version = $("version").value.trim().split(".").map(Number);
  const any = !$("version").value.trim() || version.some(Number.isNaN);
  rows.forEach((row) => {
    row.hidden = !DATA.releases[row.dataset.rule].some((release) => (!software || release.software.includes(software)) &&
      (any || release.spans.some(([low, high]) => (!low || compareVersions(version, low) >= 0) && (!high || compareVersions(version, high) <= 0))));
  });
  $("none").hidden = rows.some((row) => !row.hidden);
}
for (const name of [...new Set(Object.values(DATA.releases).flat().flatMap((release) => release.software))]) make($("software"), "option", {}, name);
$("software").addEventListener("change", filter);
$("version").addEventListener("input", filter);
$("span").addEventListener("change", () => rows.forEach(drawRow));

// Two rules
function differIn(one, two, n) { // the patches, as compare_two gives them; null where the page does not hold that n
  if (one === two) return [];
  const held = DATA.differ.of[`${one} ${two}`] || DATA.differ.of[`${two} ${one}`];
  return n <= held.length ? DATA.differ.lists[held[n - 1]] : null;
}
function firstDiffering(rule, n) {
  const [first] = differIn(DATA.original, rule, n) || [];
  return first === undefined ? 0 : first;
}
function drawPair() {
  const { one, two, n } = chosen, held = DATA.rulers[one][n - 1];
  $("one").value = one; $("two").value = two; $("n").value = n;
  $("line").textContent = `from npembed.steps.positions.differences import compare_two\ncompare_two("${one}", "${two}", ${n}, ${DATA.side})["differ"]`;
  $("ruler").style.display = held ? "" : "none";
  if (!held) {
    $("ruler-words").textContent = "";
    $("differ").textContent = `This page holds the rulers of n up to ${DATA.rulers[one].length}. ${one === DATA.original ? cellWords(two, n) : ""} The line below lists the patches.`;
    return;
  }
  const differ = differIn(one, two, n), lines = [one, two].map((name) => ({ name, ruler: DATA.rulers[name][n - 1], edges: DATA.edges[name] }));
  chosen.patch = Math.min(chosen.patch, n - 1);
  const pick = (patch) => { chosen.patch = patch; drawPair(); };
  drawRuler($("ruler"), $("ruler-words"), { side: DATA.side, one: lines[0], two: lines[1], differ, patch: chosen.patch, pick });
  rulerKeys($("ruler"), n, chosen.patch, pick);
  $("differ").textContent = differ.length ? `${differ.length} of ${n} patches differ: ${differ.join(", ")}.` : `No patch differs at n = ${n}.`;
}
for (const name of ["one", "two"]) $(name).addEventListener("change", (event) => { chosen[name] = event.target.value; drawPair(); });
$("n").addEventListener("change", (event) => { chosen.n = Math.max(1, Math.min(DATA.up_to, Math.round(Number(event.target.value)) || 1)); drawPair(); });
chosen.patch = firstDiffering(chosen.two, chosen.n);
rows.forEach(drawRow);
drawPair();

// One patch is lit in every figure; another rule's ids are compared with the page's own.
const state = { slice: DATA.first[0], patch: DATA.first[1], rule: DATA.compare || "" };
const pictures = DATA.slices.map(() => null); // the bytes of each slice, once its picture is decoded

const now = () => DATA.slices[state.slice];
const columnOf = (patch, slice) => patch % slice.size[1];
const rowOf = (patch, slice) => Math.floor(patch / slice.size[1]);
const idsOf = (rule) => (DATA.ids.of[rule] ? DATA.ids.rows[DATA.ids.of[rule][state.slice]] : null);
const ownIds = () => idsOf(String(DATA.rule === null ? "None" : DATA.rule));
const changedNow = () => (state.rule ? DATA.changed[state.rule][state.slice] : []);

function light(slice, patch) {
  const count = DATA.slices[slice].size[0] * DATA.slices[slice].size[1];
  const moved = slice !== state.slice;
  state.slice = slice;
  state.patch = Math.max(0, Math.min(count - 1, patch));
  show(moved);
}

function show(all) {
  if (all) { drawSlice(); drawTable(); drawMaps(); }
  drawTower(); drawToken(); drawOverview(); drawLit(); drawPatch(); drawBatch(); drawRulers(); drawReadout();
}

// The picture
const overview = $("overview");
function drawOverview() {
  if (!overview.firstChild) {
    const [width, height] = DATA.picture.extent;
    overview.setAttribute("viewBox", `0 0 ${width} ${height}`);
    overview.style.maxHeight = "34rem";
    make(overview, "image", { href: DATA.picture.image, width: DATA.picture.size[0], height: DATA.picture.size[1], preserveAspectRatio: "none" });
    for (const kind of ["box-under", "box"])
      DATA.slices.forEach(({ box: [left, top, right, bottom] }, i) =>
        make(overview, "rect", { x: left, y: top, width: right - left, height: bottom - top, class: kind, "data-slice": i }));
    make(overview, "rect", { class: "lit" }); make(overview, "rect", { class: "lit-in" });
    onPointer(overview, (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(overview.getScreenCTM().inverse());
      const inside = DATA.slices.map((slice, i) => [slice.box, i]).filter(([[left, top, right, bottom]]) =>
        point.x >= left && point.x < right && point.y >= top && point.y < bottom);
      if (!inside.length) return;
      const [box, i] = inside.sort(([a], [b]) => area(a) - area(b))[0], { size: [h, w] } = DATA.slices[i];
      const r = Math.floor((point.y - box[1]) / (box[3] - box[1]) * h), c = Math.floor((point.x - box[0]) / (box[2] - box[0]) * w);
      light(i, Math.min(r, h - 1) * w + Math.min(c, w - 1));
    });
  }
  const slice = now(), r = rowOf(state.patch, slice), c = columnOf(state.patch, slice);
  for (const each of overview.querySelectorAll(".box")) each.classList.toggle("now", Number(each.dataset.slice) === state.slice);
  for (const each of overview.querySelectorAll(".lit, .lit-in")) place(each, slice.across[c], slice.down[r], slice.across[c + 1], slice.down[r + 1]);
}
const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
function place(rect, left, top, right, bottom) {
  for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) rect.setAttribute(name, value);
}

// The slice, and whatever else has a cell per patch
function hatch(svg) {
  const pattern = make(make(svg, "defs"), "pattern", { id: svg.id + "-hatch", width: 0.4, height: 0.4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  make(pattern, "rect", { width: 0.4, height: 0.4, fill: "#d55e00", "fill-opacity": 0.15 });
  make(pattern, "rect", { width: 0.14, height: 0.4, fill: "#d55e00", "fill-opacity": 0.8 });
}
function overlay(svg, lines) {
  const [h, w] = now().size;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  hatch(svg);
  if (lines) {
    let path = "";
    for (let c = 1; c < w; c++) path += `M${c},0V${h}`;
    for (let r = 1; r < h; r++) path += `M0,${r}H${w}`;
    make(svg, "path", { d: path, class: "grid-lines" });
  }
  for (const patch of changedNow())
    make(svg, "rect", { x: columnOf(patch, now()), y: rowOf(patch, now()), width: 1, height: 1, class: "changed", fill: `url(#${svg.id}-hatch)`, "data-patch": patch })
      .style.fill = `url(#${svg.id}-hatch)`;
  make(svg, "rect", { width: 1, height: 1, class: "lit" }); make(svg, "rect", { width: 1, height: 1, class: "lit-in" });
}
function byCell(element) {
  onPointer(element, (event) => {
    const [across, down] = shareOf(event, element), [h, w] = now().size;
    const c = Math.floor(across * w), r = Math.floor(down * h);
    if (c >= 0 && c < w && r >= 0 && r < h) light(state.slice, r * w + c);
  });
}
function drawSlice() {
  const slice = now();
  $("slice-name").textContent = `Slice ${state.slice}: ${slice.name}`;
  const image = $("slice-image");
  image.src = slice.image;
  image.style.aspectRatio = `${slice.size[1]} / ${slice.size[0]}`;
  $("slice").setAttribute("aria-label", `Slice ${state.slice}, ${slice.size[0]} rows and ${slice.size[1]} columns of patches`);
  overlay($("slice"), true);
  if ($("ids")) {
    const ids = ownIds(), most = DATA.ids.most[DATA.ids.of[String(DATA.rule === null ? "None" : DATA.rule)][state.slice]];
    heat($("ids"), ...slice.size, (i) => (most ? ids[i] / most : 0));
    $("ids-words").textContent = `Dark blue is id 0, yellow the slice's largest, ${most}, of ${DATA.side * DATA.side - 1}.` + (DATA.rule ? " Hatched: ids that change under the other rule." : "");
    $("ids").setAttribute("role", "img");
    $("ids").setAttribute("aria-label", "The id of each patch of the slice, as a colour");
    overlay($("ids-over"), false);
  }
}
function drawLit() {
  const r = rowOf(state.patch, now()), c = columnOf(state.patch, now());
  for (const each of document.querySelectorAll("#slice .lit, #slice .lit-in, #ids-over .lit, #ids-over .lit-in, .map-over .lit, .map-over .lit-in"))
    place(each, c, r, c + 1, r + 1);
  if ($("table")) drawTable();
}

// The patch
function bytesOf(index) {
  if (pictures[index]) return Promise.resolve(pictures[index]);
  const slice = DATA.slices[index], image = new Image();
  image.src = slice.image;
  return image.decode().then(() => {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const trusted = slice.levels !== null && crcOf(bytes) === slice.check;
    return (pictures[index] = { canvas, bytes, width: canvas.width, trusted });
  });
}
// CRC-32 of red, green and blue: some browsers change the pixels that a page reads, and then their numbers are not shown.
function crcOf(bytes) {
  const table = new Uint32Array(256).map((_, i) => { for (let k = 0; k < 8; k++) i = i & 1 ? (i >>> 1) ^ 0xedb88320 : i >>> 1; return i >>> 0; });
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) if (i % 4 !== 3) crc = table[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
const CHANNELS = ["red", "green", "blue"];
function levelOf(picture, slice, channel, x, y) { return slice.levels[channel][picture.bytes[4 * (y * picture.width + x) + channel]]; }

function drawPatch() {
  const { slice: index, patch } = state, slice = now();
  bytesOf(index).then((picture) => {
    if (state.slice !== index || state.patch !== patch) return;
    const P = DATA.patch, [h, w] = slice.size, left = columnOf(patch, slice) * P, top = rowOf(patch, slice) * P;
    const canvas = $("patch");
    canvas.width = canvas.height = P;
    canvas.getContext("2d").drawImage(picture.canvas, left, top, P, P, 0, 0, P, P);
    const strip = $("strip"), around = 4;
    strip.width = (2 * around + 1) * (P + 1) + 1; strip.height = P + 2;
    const context = strip.getContext("2d");
    for (let k = -around; k <= around; k++) {
      const other = patch + k, x = (k + around) * (P + 1) + 1;
      if (other < 0 || other >= h * w) continue;
      if (k === 0) { context.fillStyle = "#f0b429"; context.fillRect(x - 1, 0, P + 2, P + 2); }
      context.drawImage(picture.canvas, columnOf(other, slice) * P, rowOf(other, slice) * P, P, P, x, 1, P, P);
    }
    const bar = $("strip-bar");
    bar.replaceChildren();
    make(bar, "rect", { y: 4, width: 1000, height: 6, class: "bucket used" });
    make(bar, "rect", { x: patch / (h * w) * 1000 - 2, width: 5, height: 14, class: "bucket now" });
    $("strip-words").textContent = `Patch ${patch} of ${h * w}: columns ${patch * P} to ${patch * P + P - 1} of the strip's ${h * w * P}.`;
    $("row").textContent = picture.trusted ? rowWords(picture, slice, left, top)
      : slice.levels ? "This browser changes the pixels that a page reads, so their numbers are not shown."
      : "The numbers of this slice are left out, so that the page stays small or because they come from no bytes; the line of Python below gives them.";
    $("pixel").textContent = "Point at a pixel.";
    canvas.onpointermove = canvas.onpointerdown = (event) => {
      const [across, down] = shareOf(event, canvas), q = Math.min(P - 1, Math.floor(across * P)), p = Math.min(P - 1, Math.floor(down * P));
      if (!picture.trusted || q < 0 || p < 0) return;
      const words = CHANNELS.map((name, c) => `${name} ${levelOf(picture, slice, c, left + q, top + p)} (number ${c * P * P + p * P + q} of the row)`);
      $("pixel").textContent = `Row ${p}, column ${q} of the patch: ${words.join(", ")}.`;
    };
  });
}
function rowWords(picture, slice, left, top) {
  const P = DATA.patch, lines = [];
  CHANNELS.forEach((name, c) => {
    lines.push(`# ${name}: numbers ${c * P * P} to ${(c + 1) * P * P - 1}`);
    for (let p = 0; p < P; p++)
      lines.push(Array.from({ length: P }, (_, q) => levelOf(picture, slice, c, left + q, top + p)).join("  "));
  });
  return lines.join("\n");
}

// The batch
const batch = $("batch"), BAR = 26;
function drawBatch() {
  if (!batch.firstChild) {
    const count = DATA.slices.length;
    batch.setAttribute("viewBox", `0 0 1000 ${count * BAR}`);
    batch.setAttribute("preserveAspectRatio", "none");
    batch.style.height = `${count * BAR}px`;
    DATA.slices.forEach(({ size: [h, w] }, i) => {
      make(batch, "rect", { y: i * BAR + 2, width: 1000, height: BAR - 6, class: "bucket" });
      make(batch, "rect", { y: i * BAR + 2, width: h * w / DATA.longest * 1000, height: BAR - 6, class: "patch odd" });
    });
    make(batch, "rect", { width: 4, height: BAR - 2, class: "bucket now" });
    onPointer(batch, (event) => {
      const [across, down] = shareOf(event, batch), i = Math.max(0, Math.min(count - 1, Math.floor(down * count)));
      const patch = Math.floor(across * DATA.longest), [h, w] = DATA.slices[i].size;
      if (patch >= 0 && patch < h * w) light(i, patch);
    });
  }
  batch.lastChild.setAttribute("x", state.patch / DATA.longest * 1000 - 1);
  batch.lastChild.setAttribute("y", state.slice * BAR);
}

// The rulers
function lineOf(rule, n) { return { name: rule, ruler: DATA.rulers[rule][n], edges: DATA.edges[rule] }; }
function drawRulers() {
  if (!$("rulers")) return;
  $("rulers").hidden = !DATA.places;
  $("no-rulers").hidden = !!DATA.places;
  if (!DATA.places) return;
  const places = DATA.places[state.slice].at, [h, r, w, c] = places[state.patch];
  for (const [id, name, n, at, other] of [["rows", "Rows", h, r, [w, c]], ["columns", "Columns", w, c, [h, r]]]) {
    $(`${id}-name`).textContent = `${name}: ${n} patch${n > 1 ? "es" : ""} against ${DATA.side} buckets`;
    const pick = (i) => {
      const wanted = id === "rows" ? [n, i, ...other] : [...other, n, i];
      const patch = places.findIndex((each) => each.every((value, k) => value === wanted[k]));
      if (patch >= 0) light(state.slice, patch);
    };
    drawRuler($(id), $(`${id}-words`), {
      side: DATA.side, one: lineOf(DATA.rule, n), two: state.rule ? lineOf(state.rule, n) : null, differ: state.rule ? DATA.differ[state.rule][n] : [], patch: at, pick,
    });
    rulerKeys($(id), n, at, pick);
  }
}

// The table
function drawTable() {
  const canvas = $("table");
  if (!canvas) return;
  const ids = ownIds(), used = new Set(ids), others = new Set(state.rule ? idsOf(state.rule) : []), G = DATA.side, lit = ids[state.patch];
  canvas.width = canvas.height = G;
  const context = canvas.getContext("2d");
  for (let i = 0; i < G * G; i++) {
    context.fillStyle = i === lit ? "#f0b429" : used.has(i) ? "#8fb8dc" : others.has(i) ? "#d55e00" : "#2f5878";
    context.fillRect(i % G, Math.floor(i / G), 1, 1);
  }
}
if ($("table"))
  onPointer($("table"), (event) => {
    const [across, down] = shareOf(event, $("table")), G = DATA.side;
    const patch = ownIds().indexOf(Math.floor(down * G) * G + Math.floor(across * G));
    if (patch >= 0) light(state.slice, patch);
  });

// What the stages make of it
const unpacked = new Map();
function floats(packed) {
  if (!unpacked.has(packed)) unpacked.set(packed, new Float32Array(Uint8Array.from(atob(packed.float32), (letter) => letter.charCodeAt(0)).buffer));
  return unpacked.get(packed);
}
const FIRST_MAPS = 3; // those of the sum; the others are of the stages after it
function mapFigure(parent, id, name) {
  const known = parent.querySelector(`[data-map="${id}"]`);
  if (known) return known;
  const figure = make(parent, "figure", { "data-map": id });
  make(figure, "h3", {}, name);
  const view = make(figure, "div", { class: "view" });
  make(view, "canvas", { role: "img", "aria-label": name });
  const over = document.createElementNS(SVG, "svg");
  over.id = `map-${id}`; over.setAttribute("class", "map-over"); over.setAttribute("preserveAspectRatio", "none"); over.setAttribute("aria-hidden", "true");
  over.style.cssText = "position:absolute;inset:0;height:100%";
  view.append(over);
  byCell(over);
  make(figure, "figcaption");
  return figure;
}
function drawMap(figure, [h, w], values, least, most, words) {
  heat(figure.querySelector("canvas"), h, w, (k) => (most > least ? (values[k] - least) / (most - least) : 0));
  overlay(figure.querySelector("svg"), false);
  figure.querySelector("figcaption").textContent = words;
}
// A place is a patch, unless the tower merges patches.
const placeNow = (shape) => (shape[0] * shape[1] < now().size[0] * now().size[1] ? DATA.seen.places[state.slice][state.patch] : state.patch);
const valueNow = (packed) => floats(packed)[placeNow(packed.shape)];
function drawMaps() {
  Object.entries(DATA.seen.maps || {}).forEach(([name, slices], i) => {
    const parent = $(i < FIRST_MAPS ? "maps" : "after-maps"), { shape, least, most } = slices[state.slice];
    if (parent) drawMap(mapFigure(parent, i, name), shape, floats(slices[state.slice]), least, most, `From ${shortest(least)} (dark) to ${shortest(most)} (light).`);
  });
}

// Attention: of the lit patch in the tower, of one token in the connector
const shaded = new Map();
function bytesAt(weights, row, count) {
  if (!shaded.has(weights)) shaded.set(weights, Uint8Array.from(atob(weights.bytes), (letter) => letter.charCodeAt(0)));
  return shaded.get(weights).subarray(row * count, (row + 1) * count);
}
const range = ({ most, sum }, row) => `From 0 (dark) to ${most[row]} (light), the mean over the heads.` +
  (sum[row] < 0.999 ? ` Together ${sum[row]}; the rest goes to what is no patch.` : "");
function drawTower() {
  const tower = DATA.seen.tower;
  if (!tower) return;
  const size = tower.size[state.slice], row = tower.stands[state.slice][state.patch], from = tower.from[state.slice][row];
  const weights = tower.weights[state.slice], merged = size[0] * size[1] < now().size[0] * now().size[1];
  const figure = mapFigure($("after-maps"), "tower", "attention in the tower's last layer");
  const what = from === placeNow(size) ? `${merged ? "The window of the lit patch" : "The lit patch"} attends to these.`
    : `The page holds ${tower.from[state.slice].length} of ${size[0] * size[1]} places: the nearest is row ${Math.floor(from / size[1])}, column ${from % size[1]}${merged ? " of the windows" : ""}, and attends to these.`;
  drawMap(figure, size, bytesAt(weights, row, size[0] * size[1]), 0, 255, `${what} ${range(weights, row)}`);
  const [down, across] = [now().size[0] / size[0], now().size[1] / size[1]];
  for (const kind of ["box-under", "box"]) {
    const at = make(figure.querySelector("svg"), "rect", { class: kind });
    place(at, (from % size[1]) * across, Math.floor(from / size[1]) * down, (from % size[1] + 1) * across, (Math.floor(from / size[1]) + 1) * down);
  }
}
function drawToken() {
  const { tokens, gathers } = DATA.seen;
  if (tokens) drawLooking(tokens);
  else if (gathers) drawGathered(gathers[state.slice]);
}
function drawLooking(tokens) {
  const size = tokens.size[state.slice], weights = tokens.weights[state.slice];
  const row = $("token") ? $("token").selectedIndex : 0;
  if (tokens.count > 1) drawMap(mapFigure($("after-maps"), "token", "attention of one token"), size, bytesAt(weights, row, size[0] * size[1]), 0, 255,
    `Token ${tokens.held[row]} of ${tokens.count}. ${range(weights, row)}`);
}
function drawGathered({ patches, of }) {
  const token = of[state.patch], own = patches[token], [h, w] = now().size;
  const figure = mapFigure($("after-maps"), "token", "the patches of the lit patch's token"), lit = new Set(own);
  drawMap(figure, [h, w], Array.from({ length: h * w }, (_, k) => (lit.has(k) ? 1 : 0)), 0, 1,
    `Token ${token} of the ${patches.length} of this slice is made of ${own.length} patches: ${own.join(", ")}.`);
}
const shortest = (value) => String(Number(value.toPrecision(6)));

// The line at the bottom
const pixels = (value) => String(Math.round(value * 100) / 100);
function drawReadout() {
  const slice = now(), r = rowOf(state.patch, slice), c = columnOf(state.patch, slice), ids = ownIds();
  const words = [`Slice ${state.slice} (${slice.name})`, `patch ${state.patch}`, `row ${r}, column ${c}`];
  const corner = (x, y) => `(${pixels(slice.across[x])}, ${pixels(slice.down[y])})`;
  words.push(`pixels ${corner(c, r)} to ${corner(c + 1, r + 1)} of the picture`);
  if (ids) words.push(`id ${ids[state.patch]}`);
  if (state.rule) words.push(`under ${state.rule} id ${idsOf(state.rule)[state.patch]}`);
  Object.entries(DATA.seen.maps || {}).forEach(([name, slices]) => words.push(`${name}: ${shortest(valueNow(slices[state.slice]))}`));
  $("readout").textContent = words.join(" · ");
  $("choose-slice").value = state.slice;
  if (!$("count")) return;
  const { each, all } = state.rule ? DATA.counts[state.rule] : {}, count = (number) => number.toLocaleString("en");
  $("count").textContent = !state.rule ? "Choose another rule below, and the patches whose ids it changes are hatched."
    : `Under ${state.rule} the ids of ${count(each[state.slice])} of this slice's ${count(slice.size[0] * slice.size[1])} patches change; of all ${count(DATA.patches)} patches, ${count(all)}.`;
}

DATA.slices.forEach((slice, i) => make($("choose-slice"), "option", { value: i }, `${i}: ${slice.name}`));
$("choose-slice").addEventListener("change", (event) => light(Number(event.target.value), 0));
if ($("rule")) {
  $("rule").value = state.rule;
  $("rule").addEventListener("change", (event) => { state.rule = event.target.value; show(true); });
}
if ($("token")) {
  DATA.seen.tokens.held.forEach((token) => make($("token"), "option", { value: token }, token));
  $("token").addEventListener("change", () => { drawToken(); drawLit(); });
}
byCell($("slice"));
if ($("ids-over")) byCell($("ids-over"));
$("slice").addEventListener("keydown", (event) => {
  const w = now().size[1], c = columnOf(state.patch, now());
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: w, ArrowUp: -w, Home: -c, End: w - 1 - c }[event.key];
  const other = { PageDown: 1, PageUp: -1 }[event.key];
  if (step === undefined && other === undefined) return;
  event.preventDefault();
  const target = state.patch + (step || 0);
  if (other) light(Math.max(0, Math.min(DATA.slices.length - 1, state.slice + other)), 0);
  else if (target >= 0 && target < now().size[0] * w) light(state.slice, target);
});
show(true);

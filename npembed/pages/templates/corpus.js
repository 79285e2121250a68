// The pictures of a corpus: a map, and which are alike.
let chosen = 0;
const MAP = [1000, 560], EDGE = 30;

function card(parent, number, words, pressed) {
  const button = make(parent, "button", { type: "button", class: "thumb" });
  if (DATA.thumbnails[number]) make(button, "img", { src: DATA.thumbnails[number], alt: "" });
  else make(button, "span", { class: "gone" }, "no longer there");
  make(button, "span", {}, words);
  if (DATA.places) { button.setAttribute("aria-pressed", String(pressed)); button.addEventListener("click", () => choose(number)); }
  else button.disabled = true;
}
function choose(number) {
  chosen = number;
  draw();
}
function draw() {
  if (!DATA.places) return;
  const dots = $("map").querySelectorAll("circle");
  dots.forEach((dot, i) => {
    const near = DATA.alike[chosen].includes(i);
    dot.setAttribute("class", i === chosen ? "dot chosen" : near ? "dot near" : "dot");
    dot.setAttribute("r", i === chosen ? 11 : near ? 8 : 5);
  });
  $("chosen-name").textContent = DATA.names[chosen];
  $("alike").replaceChildren();
  card($("alike"), chosen, "the picture", true);
  DATA.alike[chosen].forEach((number, k) => card($("alike"), number, `${DATA.cosines[chosen][k].toFixed(4)} ${DATA.names[number]}`, false));
}
DATA.names.forEach((name, number) => card($("all"), number, name, false));
if (DATA.places) {
  const map = $("map"), [width, height] = MAP;
  map.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const ends = [0, 1].map((axis) => {
    const values = DATA.places.map((place) => place[axis]);
    return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  });
  const at = (place, axis) => {
    const [least, most] = ends[axis], share = most > least ? (place[axis] - least) / (most - least) : 0.5;
    return axis ? height - EDGE - share * (height - 2 * EDGE) : EDGE + share * (width - 2 * EDGE);
  };
  DATA.places.forEach((place, i) => {
    const dot = make(map, "circle", { cx: at(place, 0), cy: at(place, 1), "data-picture": i });
    make(dot, "title", {}, DATA.names[i]);
    dot.addEventListener("pointerdown", () => choose(i));
  });
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(DATA.names.length - 1, chosen + step)));
  });
  $("share").textContent = DATA.share.map((share) => `${(share * 100).toFixed(1)} %`).join(" and ") + " of all their difference";
  draw();
}

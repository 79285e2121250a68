// Where the arrays of a failure differ.
for (const place of document.querySelectorAll(".panels")) {
  for (const panel of DATA[place.dataset.outcome]) {
    const figure = make(place, "figure");
    make(figure, "h4", {}, panel.title);
    const values = new Float32Array(Uint8Array.from(atob(panel.values), (letter) => letter.charCodeAt(0)).buffer);
    const view = make(figure, "div", { class: "view" }), canvas = make(view, "canvas", { role: "img", "aria-label": panel.title });
    heat(canvas, panel.rows, panel.columns, (i) => (panel.most > panel.least ? (values[i] - panel.least) / (panel.most - panel.least) : 0));
    const scale = Math.min(260 / panel.columns, 300 / panel.rows, 40);
    canvas.style.width = panel.rows === 1 ? "min(100%, 40rem)" : `${panel.columns * scale}px`;
    canvas.style.height = panel.rows === 1 ? "1.5rem" : `${panel.rows * scale}px`;
    const range = `From ${Number(panel.least.toPrecision(6))} (dark) to ${Number(panel.most.toPrecision(6))} (light).`;
    const words = make(figure, "figcaption", {}, range);
    canvas.addEventListener("pointermove", (event) => {
      const [across, down] = shareOf(event, canvas), c = Math.floor(across * panel.columns), r = Math.floor(down * panel.rows);
      const value = values[r * panel.columns + c];
      if (value !== undefined) words.textContent = `Row ${r}, column ${c}: ${Number(value.toPrecision(6))}.`;
    });
    canvas.addEventListener("pointerleave", () => { words.textContent = range; });
  }
}
// A link of the matrix opens what it points to.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1)), closed = target && target.closest("details");
  if (closed) { closed.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", openTarget);
openTarget();

"use strict";
// Shared by the pages: the data that Python put in, elements, colours.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg"; // a name: nothing is fetched

function make(parent, name, attributes = {}, text) {
  const element = parent instanceof SVGElement ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Dark blue over grey to yellow, which the colour-blind can tell apart and which rises in brightness.
const STOPS = [[0, 32, 76], [49, 68, 107], [102, 105, 112], [149, 143, 120], [203, 186, 105], [255, 234, 70]];
function colour(share) {
  const place = Math.max(0, Math.min(1, share)) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((from, i) => Math.round(from + (STOPS[low + 1][i] - from) * (place - low)));
}

// One pixel of a canvas per value; `share` gives 0 to 1, or null for a place that stays empty.
function heat(canvas, rows, columns, share) {
  canvas.width = columns; canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const value = share(i);
    if (value === null) continue;
    image.data.set([...colour(value), 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

// Where a pointer is, as a share of the element's width and height.
function shareOf(event, element) {
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function onPointer(element, call) {
  element.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") call(event); });
  element.addEventListener("pointerdown", call);
}

"use strict";
// The slices of every modality stand side by side on one sheet, seen from the feet. The other two planes
// are put together from strips of it, so that nothing is stored twice.
const scan = JSON.parse(document.getElementById("scan").textContent);
const [across, deep, down] = scan.shape;
const size = { axial: [across, deep], coronal: [across, down], sagittal: [deep, down] };
const count = { axial: down, coronal: deep, sagittal: across };
const mm = { axial: [0, 1], coronal: [0, 2], sagittal: [1, 2] };
const at = { axial: scan.focus[2], coronal: scan.focus[1], sagittal: scan.focus[0] };
const page = document.documentElement;
const form = document.getElementById("controls");
const sheet = (name) => document.getElementById("sheet-" + name);
const figures = [...document.querySelectorAll("figure[data-plane]")];
const widest = Math.max(...figures.map((f) => {
  const [w, h] = size[f.dataset.plane], [x, y] = mm[f.dataset.plane];
  return Math.max(w * scan.spacing[x], h * scan.spacing[y]);
})) * 1.1;

function assemble(image, plane) {
  const [width, height] = size[plane];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  const left = (k) => (k % scan.columns) * scan.tile[0];
  const top = (k) => Math.floor(k / scan.columns) * scan.tile[1];
  const n = at[plane];
  if (plane === "axial") {
    pen.drawImage(image, left(n), top(n), across, deep, 0, 0, across, deep);
  } else if (plane === "coronal") {
    for (let k = 0; k < down; k++) pen.drawImage(image, left(k), top(k) + n, across, 1, 0, k, across, 1);
  } else {
    pen.setTransform(0, 1, 1, 0, 0, 0);
    for (let k = 0; k < down; k++) pen.drawImage(image, left(k) + n, top(k), 1, deep, k, 0, 1, deep);
  }
  return canvas;
}

function frame(figure) {
  const canvas = figure.querySelector("canvas"), plane = figure.dataset.plane;
  const scale = canvas.width / widest;
  const [x, y] = mm[plane];
  const width = size[plane][0] * scan.spacing[x] * scale, height = size[plane][1] * scan.spacing[y] * scale;
  return { canvas, scale, left: (canvas.width - width) / 2, top: (canvas.height - height) / 2, width, height };
}

function letters(pen, sides, box) {
  const unit = box.canvas.width / box.canvas.clientWidth, edge = 12 * unit, end = box.canvas.width;
  pen.font = `600 ${13 * unit}px system-ui, sans-serif`;
  pen.fillStyle = "#c9d3dc";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  const places = [[edge, end / 2], [end - edge, end / 2], [end / 2, edge], [end / 2, end - edge]];
  sides.forEach((letter, n) => pen.fillText(letter, ...places[n]));
  const bar = 50 * box.scale, foot = end - 14 * unit;
  pen.fillRect(end - bar - edge, foot, bar, Math.max(1, 1.5 * unit));
  pen.font = `${11 * unit}px system-ui, sans-serif`;
  pen.fillText("50 mm", end - edge - bar / 2, foot - 9 * unit);
}

function draw() {
  const modality = form.modality.value, opacity = form.opacity.value / 100;
  for (const figure of figures) {
    const plane = figure.dataset.plane, canvas = figure.querySelector("canvas");
    const side = Math.max(1, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const pen = canvas.getContext("2d"), box = frame(figure);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, side, side);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(assemble(sheet(modality), plane), box.left, box.top, box.width, box.height);
    if (form.overlay.checked) {
      pen.globalAlpha = opacity;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(assemble(sheet("labels"), plane), box.left, box.top, box.width, box.height);
      pen.imageSmoothingEnabled = true;
      pen.globalAlpha = 1;
    }
    letters(pen, figure.dataset.sides.split(" "), box);
  }
  page.dataset.state = "drawn";
}

function tell() {
  for (const figure of figures) {
    const plane = figure.dataset.plane, slider = figure.querySelector("input");
    const words = `${at[plane] + 1} / ${count[plane]}`;
    figure.querySelector("output").textContent = words;
    slider.value = at[plane];
    slider.setAttribute("aria-valuetext", "slice " + words.replace("/", "of"));
    figure.dataset.at = at[plane];
  }
}

let waiting = false, settling = 0;
function redraw() {
  tell();
  clearTimeout(settling);
  settling = setTimeout(remember, 250); // browsers bound how often an address may change
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

function go(plane, n) {
  at[plane] = Math.min(count[plane] - 1, Math.max(0, Math.round(n)));
  redraw();
}

function remember() {
  const told = new URLSearchParams({
    modality: form.modality.value, overlay: form.overlay.checked ? 1 : 0, opacity: form.opacity.value, ...at,
  });
  try { history.replaceState(null, "", "#" + told); } catch { /* some viewers forbid it; nothing depends on it */ }
}

function recall() {
  const told = new URLSearchParams(location.hash.slice(1));
  const choice = [...form.elements.modality].find?.((radio) => radio.value === told.get("modality"));
  if (choice) choice.checked = true;
  if (told.has("overlay")) form.overlay.checked = told.get("overlay") === "1";
  if (told.has("opacity")) form.opacity.value = told.get("opacity");
  for (const plane of Object.keys(at)) {
    const n = Number.parseInt(told.get(plane), 10);
    if (n >= 0 && n < count[plane]) at[plane] = n;
  }
}

function point(figure, event) {
  // A click shows the same place in the other two planes.
  const plane = figure.dataset.plane, box = frame(figure), bounds = box.canvas.getBoundingClientRect();
  const unit = box.canvas.width / bounds.width;
  const column = (((event.clientX - bounds.left) * unit - box.left) / box.width) * size[plane][0];
  const row = (((event.clientY - bounds.top) * unit - box.top) / box.height) * size[plane][1];
  const names = ["sagittal", "coronal", "axial"];
  go(names[mm[plane][0]], Math.floor(column));
  go(names[mm[plane][1]], Math.floor(row));
}

const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
for (const figure of figures) {
  const plane = figure.dataset.plane, canvas = figure.querySelector("canvas"), slider = figure.querySelector("input");
  let dragged = null, turned = 0;
  slider.addEventListener("input", () => go(plane, Number(slider.value)));
  canvas.addEventListener("keydown", (event) => {
    if (event.key in steps) go(plane, at[plane] + steps[event.key]);
    else if (event.key === "Home") go(plane, 0);
    else if (event.key === "End") go(plane, count[plane] - 1);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey) return;
    event.preventDefault();
    turned += event.deltaY * (event.deltaMode ? 30 : 1);
    const whole = Math.trunc(turned / 30);
    turned -= whole * 30;
    if (whole) go(plane, at[plane] + whole);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { dragged = { x: event.clientX, from: at[plane], far: false }; });
  canvas.addEventListener("pointermove", (event) => {
    if (!dragged || !event.buttons) return;
    const moved = event.clientX - dragged.x;
    if (Math.abs(moved) > 6) dragged.far = true;
    if (dragged.far) go(plane, dragged.from + (moved / canvas.clientWidth) * count[plane]);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (dragged && !dragged.far) point(figure, event);
    dragged = null;
  });
  canvas.addEventListener("pointercancel", () => { dragged = null; });
}
form.addEventListener("input", redraw);
form.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("resize", redraw);
window.addEventListener("hashchange", () => { recall(); redraw(); });
recall();
tell();
window.addEventListener("load", () => {
  if ([...document.querySelectorAll("img.sheet")].every((image) => image.naturalWidth > 0)) return draw();
  page.dataset.state = "failed";
  document.getElementById("trouble").textContent = "The pictures of this page are damaged.";
});

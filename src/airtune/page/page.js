"use strict";
// Numbers under the pointer. The page reads the same without this script.
const tip = document.getElementById("tip");

function show(event, text) {
  tip.textContent = text;
  tip.style.visibility = "visible";
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - box.width - 6);
  const y = event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16;
  tip.style.left = Math.max(x, 4) + "px";
  tip.style.top = y + "px";
}

function hide() { tip.style.visibility = "hidden"; }

function figures(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e7) ? value.toExponential(2) : value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

const numbers = svg => JSON.parse(svg.closest("figure").querySelector("script").textContent);

for (const svg of document.querySelectorAll("svg.lines")) {
  const data = numbers(svg), cursor = svg.querySelector(".cursor");
  const [, , width] = svg.getAttribute("viewBox").split(" ").map(Number);
  const { x0, x1, scale } = svg.dataset, left = 56, right = width - 16;
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * width;
    const x = +x0 + (at - left) / (right - left) * (x1 - x0);
    const lines = data.lines.map(line => {
      let best = 0;
      line.x.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(line.x[best] - x)) best = i; });
      const value = k => line[k][best] === null ? null : line[k][best] * scale;
      const band = line.low[best] === line.high[best] ? "" : ` (${figures(value("low"))} to ${figures(value("high"))})`;
      return { x: line.x[best], text: `${line.name}: ${figures(value("mean"))}${band}` };
    });
    const near = lines.reduce((a, b) => Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a);
    const where = left + (near.x - x0) / (x1 - x0) * (right - left);
    cursor.setAttribute("x1", where);
    cursor.setAttribute("x2", where);
    cursor.style.visibility = "visible";
    show(event, [`${data.x} ${figures(near.x)}`, ...lines.map(line => line.text)].join("\n"));
  });
  svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; hide(); });
}

for (const svg of document.querySelectorAll("svg.heat")) {
  const data = numbers(svg);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const t = Math.min(Math.floor((event.clientX - box.left) / box.width * data.round.length), data.round.length - 1);
    const k = Math.min(Math.floor((event.clientY - box.top) / box.height * data.device.length), data.device.length - 1);
    const module = data.module[k][t];
    const did = module === null ? "not drawn" : module === 0 ? "sat out" : `module ${module}, ${data.delivered[k][t] ? "delivered" : "lost"}`;
    show(event, `round ${data.round[t]}, device ${data.device[k]} (${data.kind[k]})\n${did}`);
  });
  svg.addEventListener("pointerleave", hide);
}

for (const mark of document.querySelectorAll("[data-tip]")) {
  mark.addEventListener("pointermove", event => show(event, mark.dataset.tip));
  mark.addEventListener("pointerleave", hide);
}

// A policy's name in a legend or on a tile brings out its curves: under the pointer, or until it is pressed again.
const look = element => [...element.classList].filter(name => /^[cg]\d+$/.test(name)).join(" ");

for (const section of document.querySelectorAll("section")) {
  const marks = [...section.querySelectorAll("svg.lines .line, svg.lines .band, svg.lines .dot")];
  const names = [...section.querySelectorAll(".legend .key, .tile")]
    .map(name => [name, look(name.querySelector("i, .who"))]).filter(([, own]) => own);
  let pinned = "";
  const bring = chosen => marks.forEach(mark => mark.classList.toggle("dim", chosen !== "" && look(mark) !== chosen));
  for (const [name, own] of names) {
    name.classList.add("policy");
    name.addEventListener("pointerenter", () => bring(own));
    name.addEventListener("pointerleave", () => bring(pinned));
    name.addEventListener("click", () => {
      pinned = pinned === own ? "" : own;
      names.forEach(([other, its]) => other.classList.toggle("pinned", its === pinned));
      bring(pinned);
    });
  }
}

// The page: takes photos, hands them to the worker, and shows what it finds.
import { maskFile } from "./picture.js";

const at = (id) => document.getElementById(id);
const say = (text) => (at("status").textContent = text);
const percent = (share) => (share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

const demo = await (await fetch("demo.json")).json();
const worker = new Worker("worker.js", { type: "module" });
const canvas = at("picture");
let ready = false;
let waiting = null; // the photo chosen before the model is loaded
let newest = 0; // number of the newest photo; answers to earlier ones are not shown
let result = null; // of the worker, with `name`, `tint` and `edges`, pictures to draw over the photo, and `place`

// The worker's messages

worker.onmessage = ({ data }) => {
  if (data.problem) {
    tell(data.problem, data.id);
  } else if (data.total) {
    at("progress").hidden = false;
    at("progress").value = data.loaded / data.total;
    const starting = data.loaded === data.total;
    say(starting ? "Starting the model …" : `Loading the model: ${megabytes(data.loaded)} of ${megabytes(data.total)}`);
  } else if (data.ready) {
    ready = true;
    document.body.dataset.runsOn = data.ready;
    at("progress").hidden = true;
    at("about").textContent = about(data.ready);
    say("Ready: choose a photo.");
    if (waiting) segment(waiting);
  } else if (data.id === newest) {
    show(data.result);
  }
};
worker.onerror = () => tell("This browser cannot run the page: use a recent Chrome, Edge, Firefox or Safari.");
worker.postMessage({ demo });

function about(runsOn) {
  const kind = { float32: "float32", float16: "float16 weights", int8: "int8 weights" }[demo.precision];
  const loss = demo.precision_note ? ` ${demo.precision_note}` : "";
  return `Model: ${demo.model ?? demo.title}, ${megabytes(demo.model_bytes)}, ${kind}; it runs on ${runsOn}.${loss}`;
}

function tell(problem, id = newest) {
  if (id !== newest) return;
  at("problem").textContent = problem;
  at("problem").hidden = false;
  at("progress").hidden = true;
  at("result").hidden = true;
  say(ready ? "Choose another photo." : "");
}

// Taking photos

function segment(photo) {
  newest += 1;
  at("problem").hidden = true;
  if (!ready) {
    waiting = photo;
    return;
  }
  waiting = null;
  say(`Segmenting ${photo.name} …`);
  at("result").setAttribute("aria-busy", "true");
  result = null;
  at("choose").dataset.photo = photo.name;
  worker.postMessage({ id: newest, file: photo });
}

at("file").addEventListener("change", ({ target }) => {
  if (target.files.length) segment(target.files[0]);
  target.value = ""; // the same file may be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || at("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const photo = event.dataTransfer.files[0];
  if (photo) segment(photo);
  else tell("This is not a file: save the picture first, then drop the file here.");
});

for (const [i, path] of demo.samples.entries()) {
  const image = new Image();
  image.src = path;
  image.alt = `Sample photo ${i + 1}`;
  const button = document.createElement("button");
  button.type = "button";
  button.append(image);
  button.addEventListener("click", async () => {
    const blob = await (await fetch(path)).blob();
    segment(new File([blob], path.split("/").pop(), { type: blob.type }));
  });
  at("samples").append(button);
  at("samples").hidden = false;
}

const video = document.querySelector("video");
at("camera").hidden = !navigator.mediaDevices?.getUserMedia;
at("camera").addEventListener("click", async () => {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
    at("viewfinder").showModal();
  } catch {
    tell("The camera cannot be used: allow it for this page, or choose a photo.");
  }
});
at("shoot").addEventListener("click", () => {
  if (!video.videoWidth) return;
  const frame = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  frame.getContext("2d").drawImage(video, 0, 0);
  at("viewfinder").close();
  frame.convertToBlob().then((blob) => segment(new File([blob], "camera.png", { type: blob.type })));
});
at("close").addEventListener("click", () => at("viewfinder").close());
at("viewfinder").addEventListener("close", () => video.srcObject?.getTracks().forEach((track) => track.stop()));

// Showing the result

function show(found) {
  result = { ...found, name: at("choose").dataset.photo, ...layers(found), place: null };
  const { photo, classes, original } = result;
  const counts = new Uint32Array(demo.names.length);
  for (const id of classes) counts[id]++;
  const order = [...counts.keys()].filter((id) => counts[id]).sort((a, b) => counts[b] - counts[a] || a - b);
  at("legend").tBodies[0].replaceChildren(...order.map((id) => legendRow(id, counts[id] / classes.length, counts[id] / counts[order[0]])));

  canvas.width = photo.width;
  canvas.height = photo.height;
  const ratio = photo.width / photo.height, most = Math.max(640, 2 * photo.width); // small photos are enlarged
  canvas.style.width = `min(100%, ${75 * ratio}vh, ${most}px)`;
  canvas.setAttribute("aria-label", `${result.name} with its classes. The arrow keys move a ring, which tells the class.`);
  at("point").textContent = "";
  at("facts").textContent =
    (original[0] === photo.width ? "" : `Scaled from ${original.join(" × ")} to ${photo.width} × ${photo.height} pixels. `) +
    `Segmented in ${(found.milliseconds / 1000).toFixed(found.milliseconds < 995 ? 2 : 1)} s.`;
  at("result").hidden = false;
  at("result").removeAttribute("aria-busy");
  at("result").dataset.number = newest;
  const first = order.slice(0, 3).map((id) => `${demo.names[id]} ${percent(counts[id] / classes.length)}`);
  canvas.scrollIntoView({ block: "nearest" }); // on a phone it lies below
  say(`${result.name}: ${first.join(", ")}${order.length > 3 ? ", …" : "."}`);
  draw();
}

function legendRow(id, share, length) {
  const row = document.createElement("tr");
  row.dataset.id = id;
  const cells = Array.from({ length: 3 }, () => row.insertCell());
  const patch = document.createElement("span");
  patch.className = "patch";
  patch.style.background = `rgb(${demo.palette[id]})`;
  cells[0].append(patch);
  cells[1].textContent = demo.names[id];
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.style.width = `${55 * length}%`;
  cells[2].append(bar, percent(share));
  return row;
}

// The classes in their colours, and their borders alone, as canvases of the photo's size.
function layers({ photo: { data, width, height }, classes }) {
  const [photo, tint, edges] = Array.from({ length: 3 }, () => new OffscreenCanvas(width, height));
  photo.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  const all = new ImageData(width, height), borders = new ImageData(width, height);
  const colors = Uint32Array.from(demo.palette, ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red);
  const tinted = new Uint32Array(all.data.buffer), bordered = new Uint32Array(borders.data.buffer);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      tinted[i] = colors[classes[i]];
      const border = (x + 1 < width && classes[i] !== classes[i + 1]) || (y + 1 < height && classes[i] !== classes[i + width]);
      if (border) bordered[i] = colors[classes[i]];
    }
  }
  tint.getContext("2d").putImageData(all, 0, 0);
  edges.getContext("2d").putImageData(borders, 0, 0);
  return { drawn: photo, tint, edges };
}

function paint(context) {
  const opacity = at("opacity").value / 100;
  context.drawImage(result.drawn, 0, 0);
  if (!opacity) return;
  context.globalAlpha = opacity;
  context.drawImage(result.tint, 0, 0);
  context.globalAlpha = 1;
  context.drawImage(result.edges, 0, 0);
}

function draw() {
  if (!result) return;
  const context = canvas.getContext("2d");
  paint(context);
  if (!result.place) return;
  const radius = (9 * canvas.width) / (canvas.clientWidth || canvas.width); // 9 pixels of the screen
  for (const [color, width] of [["#000", 0.55], ["#fff", 0.25]]) {
    context.beginPath();
    context.arc(result.place[0] + 0.5, result.place[1] + 0.5, radius, 0, 2 * Math.PI);
    context.strokeStyle = color;
    context.lineWidth = width * radius;
    context.stroke();
  }
}

at("opacity").addEventListener("input", ({ target }) => {
  at("percent").textContent = `${target.value} %`;
  target.setAttribute("aria-valuetext", `${target.value} percent`);
  draw();
});

function ask(x, y) {
  if (!result) return;
  const { width, height } = result.photo;
  result.place = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  const i = result.place[1] * width + result.place[0];
  const id = result.classes[i];
  at("point").textContent = `${demo.names[id]}, confidence ${percent(result.confidence[i])}`;
  for (const row of at("legend").tBodies[0].rows) row.classList.toggle("here", Number(row.dataset.id) === id);
  draw();
}

canvas.addEventListener("click", ({ offsetX, offsetY }) => {
  ask(Math.floor((offsetX / canvas.clientWidth) * canvas.width), Math.floor((offsetY / canvas.clientHeight) * canvas.height));
});
canvas.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!way || !result) return;
  event.preventDefault();
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / 40));
  const [x, y] = result.place ?? [canvas.width >> 1, canvas.height >> 1];
  ask(x + step * way[0], y + step * way[1]);
});

// Downloads

function save(blob, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = result.name.replace(/\.[^.]*$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

at("save-mask").addEventListener("click", async () => {
  const { classes, photo } = result;
  save(await maskFile({ classes, width: photo.width, height: photo.height }, result.original, demo.palette), "_mask.png");
});

// The photo under its colours, as the slider has them, above a legend.
at("save-overlay").addEventListener("click", async () => {
  const { width, height } = result.photo;
  const size = Math.max(12, Math.round(Math.min(width, height) / 26)), line = Math.round(1.6 * size);
  const rows = [...at("legend").tBodies[0].rows];
  const texts = rows.map((row) => `${row.cells[1].textContent}  ${row.cells[2].textContent}`);
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.font = `${size}px system-ui, sans-serif`;
  const column = Math.max(...texts.map((text) => context.measureText(text).width)) + 3 * size;
  const columns = Math.max(1, Math.min(rows.length, Math.floor(width / column)));
  const lines = Math.ceil(rows.length / columns);
  const file = new OffscreenCanvas(Math.max(width, Math.ceil(column)), height + lines * line + size);
  const page = file.getContext("2d");
  page.fillStyle = "#fff";
  page.fillRect(0, 0, file.width, file.height);
  paint(page);
  page.font = context.font;
  page.textBaseline = "middle";
  rows.forEach((row, i) => {
    const left = 0.5 * size + Math.floor(i / lines) * column, middle = height + 0.5 * size + ((i % lines) + 0.5) * line;
    page.fillStyle = `rgb(${demo.palette[row.dataset.id]})`;
    page.fillRect(left, middle - size / 2, size, size);
    page.fillStyle = "#202020";
    page.fillText(texts[i], left + 1.5 * size, middle);
  });
  save(await file.convertToBlob(), "_overlay.png");
});

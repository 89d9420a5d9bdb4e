// The model, in a thread of its own, so that the page stays alive while it computes.
//
// In:  {demo}, the content of demo.json, once; then {id, file}, photos as Blobs.
// Out: {loaded, total} while the model is fetched; {ready} with its processor ("WebGPU" or "WebAssembly"); {id, result};
//      {id, problem} or {problem}, a sentence for the page.
import { classify, fit, normalize, processedSize, resize } from "./picture.js";

const MOST_NUMBERS = 64e6; // logits at the size of the photo: 256 MB
let demo, ort, session, runsOn;

self.onmessage = async ({ data }) => {
  try {
    if (data.demo) {
      demo = data.demo;
      await load();
      self.postMessage({ ready: runsOn });
    } else {
      const result = await segment(data.file);
      const { photo, classes, confidence } = result;
      self.postMessage({ id: data.id, result }, [photo.data.buffer, classes.buffer, confidence.buffer]);
    }
  } catch (error) {
    self.postMessage({ id: data.id, problem: sentence(error) });
  }
};

class Problem extends Error {}

function sentence(error) {
  if (error instanceof Problem) return error.message;
  const reason = String(error?.message ?? error).split("\n")[0];
  if (error instanceof RangeError || /alloc|memory|bounds/i.test(reason)) {
    return "The browser has too little memory for this photo: close other pages, or choose a smaller photo.";
  }
  return `Something went wrong: ${reason} Please reload the page.`;
}

async function load() {
  const model = await fetchModel();
  const gpu = await self.navigator.gpu?.requestAdapter().catch(() => null);
  const real = gpu && !(gpu.info?.isFallbackAdapter ?? gpu.isFallbackAdapter); // else a CPU that plays GPU, slowly
  if (real && (await start("webgpu", model))) return;
  if (!(await start("wasm", model))) {
    throw new Problem("This browser cannot run the model: use a recent Chrome, Edge, Firefox or Safari.");
  }
}

async function fetchModel() {
  const failed = (why) => new Problem(`The model could not be loaded (${why}): check the connection and reload the page.`);
  try {
    const response = await fetch(demo.model_file);
    if (!response.ok) throw failed(response.status);
    const total = demo.model_bytes;
    const bytes = new Uint8Array(total);
    const reader = response.body.getReader();
    let loaded = 0;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (loaded + part.value.length > total) throw failed("model.onnx belongs to another page");
      bytes.set(part.value, loaded);
      loaded += part.value.length;
      self.postMessage({ loaded, total });
    }
    if (loaded !== total) throw failed("the connection broke off");
    return bytes;
  } catch (error) {
    throw error instanceof Problem ? error : failed(error.message);
  }
}

// A session on the GPU or the CPU, tried on a small image; false where it does not work here.
async function start(provider, model) {
  try {
    ort = await import(`./runtime/ort.${provider}.min.mjs`);
    ort.env.wasm.wasmPaths = new URL("./runtime/", self.location.href).href;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(self.navigator.hardwareConcurrency || 1, 4) : 1;
    ort.env.logLevel = "error";
    session = await ort.InferenceSession.create(model, {
      executionProviders: [provider],
      graphOptimizationLevel: "all",
      logSeverityLevel: 3, // errors
      extra: { session: { disable_quant_qdq: "1" } }, // int8 weights become float32 once, and not in every run
    });
    const [width, height] = demo.image_size ? [...demo.image_size].reverse() : [64, 64];
    await infer({ data: new Uint8ClampedArray(width * height * 4), width, height });
    runsOn = provider === "webgpu" ? "WebGPU" : "WebAssembly";
    return true;
  } catch (error) {
    console.warn(`${provider}: ${error.message ?? error}`);
    return false;
  }
}

// Logits of a picture, and the width and height that they have and that count.
async function infer(picture) {
  const { values, width, height } = normalize(picture, demo.processor, demo.size_multiple);
  const input = new ort.Tensor("float32", values, [1, 3, height, width]);
  const { logits } = await session.run({ pixel_values: input });
  const size = [logits.dims[3], logits.dims[2]];
  return { logits: logits.data, size, used: [Math.min(picture.width, size[0]), Math.min(picture.height, size[1])] };
}

async function segment(file) {
  const original = await decode(file);
  const started = performance.now();
  const count = demo.names.length;
  const shown = fit(original, demo.max_side, MOST_NUMBERS / count);
  const photo = resize(original, ...shown);
  let input = photo;
  const { processor } = demo;
  if (processor.do_resize) input = resize(original, ...processedSize(original, processor.size), processor.resample);
  if (demo.image_size) input = resize(input, demo.image_size[1], demo.image_size[0]);
  const { logits, size, used } = await infer(input);
  const found = classify(logits, count, size, used, photo.width, photo.height);
  return {
    ...found,
    photo: photo === original ? { ...photo, data: photo.data.slice() } : photo,
    original: [original.width, original.height],
    milliseconds: Math.round(performance.now() - started),
  };
}

// The pixels of a file, upright, in the numbers of the file: without its colour profile, as PIL reads it.
async function decode(file) {
  if (!file.size) throw new Problem("This file is empty: choose a JPEG, PNG or WebP photo.");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Problem("This file cannot be read as a picture: choose a JPEG, PNG or WebP photo.");
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { alpha: false, willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { data: context.getImageData(0, 0, width, height).data, width, height };
}

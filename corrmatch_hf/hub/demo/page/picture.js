// Pixels in and out: what the image processor does in Python, class ids from logits, and masks as PNG files.
// Pictures are {data: Uint8ClampedArray of RGBA, width, height}, upright. Knows neither the page nor the model.

// Filters of PIL's codes 1 (Lanczos), 2 (bilinear) and 3 (bicubic): their reach in pixels, and their weight at a distance.
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  1: { reach: 3, weight: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
  2: { reach: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) },
  3: {
    reach: 2,
    weight: (x) => {
      const d = Math.abs(x);
      if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
      return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
    },
  },
};
const BITS = 22; // weights are whole numbers of 2^-22, as in PIL

// For each output pixel of one side: the first input pixel, and the weights from there on (rows of `most` numbers).
function sideWeights(from, to, { reach, weight }) {
  const scale = from / to;
  const stretch = Math.max(scale, 1); // wider when it shrinks: that is the antialiasing
  const half = reach * stretch;
  const most = 2 * Math.ceil(half) + 1;
  const first = new Int32Array(to), count = new Int32Array(to), weights = new Int32Array(to * most);
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const low = Math.max(Math.trunc(center - half + 0.5), 0);
    const high = Math.min(Math.trunc(center + half + 0.5), from);
    const row = [];
    for (let j = low; j < high; j++) row.push(weight((j - center + 0.5) / stretch));
    const sum = row.reduce((a, b) => a + b, 0) || 1;
    row.forEach((w, k) => {
      weights[i * most + k] = Math.trunc((w / sum) * 2 ** BITS + (w < 0 ? -0.5 : 0.5));
    });
    first[i] = low;
    count[i] = high - low;
  }
  return { first, count, weights, most };
}

// A picture of another size, as PIL and torchvision resize with antialiasing: rows first, rounded to bytes, then columns.
export function resize(picture, width, height, resample = 2) {
  if (picture.width === width && picture.height === height) return picture;
  if (!(resample in FILTERS)) return resizeToNearest(picture, width, height);
  const across = sideWeights(picture.width, width, FILTERS[resample]);
  const down = sideWeights(picture.height, height, FILTERS[resample]);
  const half = 1 << (BITS - 1);
  const narrow = new Uint8ClampedArray(width * picture.height * 4).fill(255);
  for (let y = 0; y < picture.height; y++) {
    const row = y * picture.width * 4;
    for (let x = 0; x < width; x++) {
      let red = half, green = half, blue = half;
      let at = row + across.first[x] * 4;
      const start = x * across.most, end = start + across.count[x];
      for (let k = start; k < end; k++, at += 4) {
        const w = across.weights[k];
        red += picture.data[at] * w;
        green += picture.data[at + 1] * w;
        blue += picture.data[at + 2] * w;
      }
      const to = (y * width + x) * 4;
      narrow[to] = red >> BITS; // the array clamps to 0..255
      narrow[to + 1] = green >> BITS;
      narrow[to + 2] = blue >> BITS;
    }
  }
  const data = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let y = 0; y < height; y++) {
    const start = y * down.most, end = start + down.count[y];
    for (let x = 0; x < width; x++) {
      let red = half, green = half, blue = half;
      let at = (down.first[y] * width + x) * 4;
      for (let k = start; k < end; k++, at += width * 4) {
        const w = down.weights[k];
        red += narrow[at] * w;
        green += narrow[at + 1] * w;
        blue += narrow[at + 2] * w;
      }
      const to = (y * width + x) * 4;
      data[to] = red >> BITS;
      data[to + 1] = green >> BITS;
      data[to + 2] = blue >> BITS;
    }
  }
  return { data, width, height };
}

function resizeToNearest(picture, width, height) {
  const data = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < height; y++) {
    const row = Math.trunc(((y + 0.5) * picture.height) / height) * picture.width;
    for (let x = 0; x < width; x++) {
      const at = (row + Math.trunc(((x + 0.5) * picture.width) / width)) * 4;
      for (let c = 0; c < 4; c++) data[(y * width + x) * 4 + c] = picture.data[at + c];
    }
  }
  return { data, width, height };
}

// The size with sides of at most `longest` and an area of at most `area`, in proportion; never larger.
export function fit({ width, height }, longest, area) {
  const scale = Math.min(1, longest / Math.max(width, height), Math.sqrt(area / (width * height)));
  return [width, height].map((side) => Math.max(1, Math.round(side * scale)));
}

// Width and height that the image processor resizes to, by the kind of its `size`.
export function processedSize({ width, height }, size) {
  const short = Math.min(width, height), long = Math.max(width, height);
  const turned = (shortSide, longSide) => (width < height ? [shortSide, longSide] : [longSide, shortSide]);
  if (size.shortest_edge) {
    const capped = size.longest_edge && (long / short) * size.shortest_edge > size.longest_edge;
    if (!capped) return turned(size.shortest_edge, Math.trunc((size.shortest_edge * long) / short));
    const exact = (size.longest_edge * short) / long;
    const rounded = Math.round(exact) - (exact % 1 === 0.5 && Math.round(exact) % 2); // halves to the even number
    if (short === rounded) return [width, height];
    return turned(rounded, Math.trunc((exact * long) / short));
  }
  if (size.max_height && size.max_width) {
    const scale = Math.min(size.max_height / height, size.max_width / width);
    return [Math.trunc(width * scale), Math.trunc(height * scale)];
  }
  return [size.width, size.height];
}

// Float32Array (3, H, W) of normalised values, padded at the right and bottom with zeros to whole `multiple`s.
export function normalize(picture, processor, multiple = 1) {
  const width = Math.ceil(picture.width / multiple) * multiple;
  const height = Math.ceil(picture.height / multiple) * multiple;
  const values = new Float32Array(3 * width * height);
  const factor = processor.do_rescale ? processor.rescale_factor : 1;
  for (let c = 0; c < 3; c++) {
    const mean = processor.do_normalize ? processor.image_mean[c] : 0;
    const std = processor.do_normalize ? processor.image_std[c] : 1;
    const table = Float32Array.from({ length: 256 }, (_, value) => (value * factor - mean) / std);
    for (let y = 0; y < picture.height; y++) {
      let to = (c * height + y) * width, at = y * picture.width * 4 + c;
      for (let x = 0; x < picture.width; x++, at += 4) values[to++] = table[picture.data[at]];
    }
  }
  return { values, width, height };
}

// Class ids and their softmax, (height, width), of logits (K, rowsOf, columnsOf) whose first `rows` and `columns` count.
export function classify(logits, count, [columnsOf, rowsOf], [columns, rows], width, height) {
  const classes = count > 256 ? new Uint16Array(width * height) : new Uint8Array(width * height);
  const confidence = new Float32Array(width * height);
  const row = new Float32Array(count * columns); // logits of one output row, not yet stretched to its width
  const scores = new Float32Array(count);
  const stepY = height > 1 ? (rows - 1) / (height - 1) : 0; // corners lie on corners, as in Python
  const stepX = width > 1 ? (columns - 1) / (width - 1) : 0;
  for (let y = 0; y < height; y++) {
    const top = Math.min(Math.trunc(y * stepY), rows - 1), below = Math.min(top + 1, rows - 1);
    const lower = y * stepY - top;
    for (let k = 0; k < count; k++) {
      const a = (k * rowsOf + top) * columnsOf, b = (k * rowsOf + below) * columnsOf;
      for (let x = 0; x < columns; x++) {
        const value = logits[a + x];
        row[k * columns + x] = lower ? value + (logits[b + x] - value) * lower : value;
      }
    }
    for (let x = 0; x < width; x++) {
      const left = Math.min(Math.trunc(x * stepX), columns - 1), right = Math.min(left + 1, columns - 1);
      const later = x * stepX - left;
      let best = 0;
      for (let k = 0; k < count; k++) {
        const value = row[k * columns + left];
        scores[k] = later ? value + (row[k * columns + right] - value) * later : value;
        if (scores[k] > scores[best]) best = k;
      }
      let sum = 0;
      for (let k = 0; k < count; k++) sum += Math.exp(scores[k] - scores[best]);
      if (!Number.isFinite(sum)) throw new Error("The model's outputs are not finite: its weights are corrupt.");
      classes[y * width + x] = best;
      confidence[y * width + x] = 1 / sum;
    }
  }
  return { classes, confidence };
}

// A PNG file whose pixel values are the class ids, enlarged to whole pixels of the photo: with a palette, or of 16 bits for
// more than 256 classes. Ids without a class are white, as in the masks of `corrmatch predict`.
export async function maskFile({ classes, width, height }, [fileWidth, fileHeight], palette) {
  const wide = palette.length > 256 ? 2 : 1;
  const lines = new Uint8Array(fileHeight * (1 + fileWidth * wide)); // each begins with its filter, none
  for (let y = 0, to = 0; y < fileHeight; y++) {
    const row = Math.trunc(((y + 0.5) * height) / fileHeight) * width;
    to++;
    for (let x = 0; x < fileWidth; x++) {
      const id = classes[row + Math.trunc(((x + 0.5) * width) / fileWidth)];
      if (wide === 2) lines[to++] = id >> 8;
      lines[to++] = id & 255;
    }
  }
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const content = new Uint8Array(await new Response(packed).arrayBuffer());
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, fileWidth);
  new DataView(header.buffer).setUint32(4, fileHeight);
  header.set(wide === 2 ? [16, 0] : [8, 3], 8); // bits, and the kind: gray or palette
  const chunks = [chunk("IHDR", header)];
  if (wide === 1) {
    const colors = new Uint8Array(3 * 256).fill(255);
    colors.set(palette.flat());
    chunks.push(chunk("PLTE", colors));
  }
  chunks.push(chunk("IDAT", content), chunk("IEND", new Uint8Array(0)));
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  return new Blob([signature, ...chunks], { type: "image/png" });
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

// A part of a PNG file: its length, its kind, its content and a checksum of the latter two.
function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = kind.charCodeAt(i);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < content.length + 8; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(content.length + 8, crc ^ 0xffffffff);
  return bytes;
}

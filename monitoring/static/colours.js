// Viridis: even in lightness, so it reads the same to every kind of colour vision, and in grey.

const ANCHORS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

// 256 pixels as an ImageData takes them (little endian: alpha, blue, green, red).
export const PALETTE = Uint32Array.from({ length: 256 }, (_, index) => {
  const place = (index / 255) * (ANCHORS.length - 1);
  const low = Math.min(Math.floor(place), ANCHORS.length - 2);
  const [r, g, b] = ANCHORS[low].map((from, c) => Math.round(from + (ANCHORS[low + 1][c] - from) * (place - low)));
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
});

export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export const isDark = matchMedia("(prefers-color-scheme: dark)");

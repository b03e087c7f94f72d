// An image with a mask painted over it: drag to paint, drag with Shift or the right button to erase.
// Painting is all in the browser, so it stays smooth while the kernel works; the mask goes to Python at the end of a stroke.

const MASK_COLOUR = "rgba(237, 140, 51, 0.85)";

function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "fcs-mask-painter";
  canvas.style.cssText = "cursor: crosshair; touch-action: none; border: 1px solid #999";
  el.append(canvas);
  const context = canvas.getContext("2d");
  const picture = new Image();
  let mask = new Uint8Array(0);
  let stroke = null; // { erase, x, y } while the button is down

  const size = () => ({ height: model.get("height"), width: model.get("width"), zoom: model.get("zoom") });

  function draw() {
    const { height, width, zoom } = size();
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, width * zoom, height * zoom);
    context.fillStyle = MASK_COLOUR;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (mask[y * width + x]) context.fillRect(x * zoom, y * zoom, zoom, zoom);
      }
    }
  }

  function readMask() {
    const { height, width } = size();
    const view = model.get("mask_bytes");
    mask = new Uint8Array(height * width);
    if (view && view.byteLength === mask.length) {
      mask.set(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
    }
    draw();
  }

  function readPicture() {
    const view = model.get("image_png");
    if (!view || !view.byteLength) return;
    URL.revokeObjectURL(picture.src);
    picture.src = URL.createObjectURL(new Blob([view], { type: "image/png" }));
  }
  picture.onload = draw;

  function resize() {
    const { height, width, zoom } = size();
    canvas.width = width * zoom;
    canvas.height = height * zoom;
    readMask();
  }

  // A disc of the brush's diameter, in the image's pixels.
  function dab(x, y, value) {
    const { height, width } = size();
    const radius = model.get("brush") / 2;
    for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++) {
      for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius); column++) {
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= Math.max(radius, 0.71)) mask[row * width + column] = value;
      }
    }
  }

  // Where the pointer is, in the image's pixels, however the page scales the canvas.
  function position(event) {
    const box = canvas.getBoundingClientRect();
    const { height, width } = size();
    return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
  }

  function paintTo(event) {
    const { x, y } = position(event);
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - stroke.x, y - stroke.y)));
    for (let i = 0; i <= steps; i++) {
      dab(stroke.x + ((x - stroke.x) * i) / steps, stroke.y + ((y - stroke.y) * i) / steps, stroke.erase ? 0 : 1);
    }
    stroke.x = x;
    stroke.y = y;
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    stroke = { erase: event.button === 2 || event.shiftKey, ...position(event) };
    paintTo(event);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => stroke && paintTo(event));
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (!stroke) return;
      stroke = null;
      model.set("mask_bytes", new DataView(mask.slice().buffer));
      model.save_changes();
    });
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  model.on("change:mask_bytes", () => stroke || readMask());
  model.on("change:image_png", readPicture);
  for (const name of ["height", "width", "zoom"]) model.on(`change:${name}`, resize);
  resize();
  readPicture();
  return () => URL.revokeObjectURL(picture.src);
}

export default { render };

// An image, each pixel `zoom` screen pixels wide, with which the mouse does something: MODES says what.

function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.style.cssText = "cursor: crosshair; touch-action: none; border: 1px solid #999";
  el.append(canvas);
  const context = canvas.getContext("2d");
  const picture = new Image();
  const size = () => ({ height: model.get("height"), width: model.get("width"), zoom: model.get("zoom") });

  // Where the pointer is, in the image's pixels, however the page scales the canvas.
  function position(event) {
    const box = canvas.getBoundingClientRect();
    const { height, width } = size();
    return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
  }

  function draw() {
    const { height, width, zoom } = size();
    canvas.width = width * zoom; // clears it, too
    canvas.height = height * zoom;
    context.imageSmoothingEnabled = false;
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    drawOver();
  }

  function readPicture() {
    const view = model.get("image_png");
    if (!view || !view.byteLength) return;
    URL.revokeObjectURL(picture.src);
    picture.src = URL.createObjectURL(new Blob([view], { type: "image/png" }));
  }
  picture.onload = draw;

  // With the arrow keys, too; the notebook's own shortcuts keep away while the image has the focus.
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.dataset.lmSuppressShortcuts = "true";

  // A picture's file that is dropped on it goes to Python as it is.
  canvas.addEventListener("dragover", (event) => event.preventDefault());
  canvas.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    const file = event.dataTransfer.files[0];
    if (!file) return;
    model.set("dropped", new DataView(await file.arrayBuffer()));
    model.save_changes();
  });

  const drawOver = MODES[model.get("mode")]({ model, canvas, context, size, position, draw });
  model.on("change:image_png", readPicture);
  for (const name of ["height", "width", "zoom"]) model.on(`change:${name}`, draw);
  draw();
  readPicture();
  return () => URL.revokeObjectURL(picture.src);
}

// Drag to paint in the colour number `label`, drag with Shift or the right button to erase. Painting is all in the
// browser, so it stays smooth while the kernel works; what is painted goes to Python at the end of a stroke.
function paint({ model, canvas, context, size, position, draw }) {
  canvas.className = "fcs-mask-painter";
  canvas.setAttribute(
    "aria-label",
    `${model.get("name")}; drag to paint, or arrow keys to move, Space to paint, Delete to erase, Ctrl-Z to undo`,
  );
  const layer = document.createElement("canvas"); // what is painted, a pixel for a pixel
  let painted = new Uint8Array(0); // 0: nothing, n: in the n-th colour
  let stroke = null; // { label, x, y } while the button is down
  let brush = null; // { x, y } where the arrow keys have brought it

  function read() {
    const { height, width } = size();
    const view = model.get("mask_bytes");
    painted = new Uint8Array(height * width);
    if (view && view.byteLength === painted.length) {
      painted.set(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
    }
  }

  function drawOver() {
    const { height, width } = size();
    if (painted.length !== height * width) read();
    const colours = model.get("colours");
    const pixels = new ImageData(width, height);
    painted.forEach((label, i) => label && pixels.data.set([...colours[(label - 1) % colours.length], 217], 4 * i));
    layer.width = width;
    layer.height = height;
    layer.getContext("2d").putImageData(pixels, 0, 0);
    context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    if (!brush || document.activeElement !== canvas) return;
    const { zoom } = size();
    for (const [width, colour] of [[3, "black"], [1, "white"]]) { // seen on any image
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.beginPath();
      context.arc(brush.x * zoom, brush.y * zoom, Math.max(1, model.get("brush") / 2) * zoom, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  function send() {
    model.set("mask_bytes", new DataView(painted.slice().buffer));
    model.save_changes();
  }

  // A disc of the brush's diameter, in the image's pixels.
  function dab(x, y) {
    const { height, width } = size();
    const radius = model.get("brush") / 2;
    for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++) {
      for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius); column++) {
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= Math.max(radius, 0.71)) painted[row * width + column] = stroke.label;
      }
    }
  }

  function paintTo(event) {
    const { x, y } = position(event);
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - stroke.x, y - stroke.y)));
    for (let i = 0; i <= steps; i++) {
      dab(stroke.x + ((x - stroke.x) * i) / steps, stroke.y + ((y - stroke.y) * i) / steps);
    }
    stroke = { ...stroke, x, y };
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    stroke = { label: event.button === 2 || event.shiftKey ? 0 : model.get("label"), ...position(event) };
    paintTo(event);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => stroke && paintTo(event));
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (!stroke) return;
      stroke = null;
      send();
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const { height, width } = size();
    const by = event.shiftKey ? 5 : 1;
    const move = { ArrowUp: [0, -by], ArrowDown: [0, by], ArrowLeft: [-by, 0], ArrowRight: [by, 0] }[event.key];
    brush ??= { x: Math.floor(width / 2) + 0.5, y: Math.floor(height / 2) + 0.5 };
    if (move) {
      brush.x = Math.min(width - 0.5, Math.max(0.5, brush.x + move[0]));
      brush.y = Math.min(height - 0.5, Math.max(0.5, brush.y + move[1]));
    } else if (event.key === " " || event.key === "Delete" || event.key === "Backspace") {
      stroke = { label: event.key === " " ? model.get("label") : 0, ...brush };
      dab(brush.x, brush.y);
      stroke = null;
      send();
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      model.send("undo");
    } else {
      return;
    }
    draw();
    event.preventDefault();
    event.stopPropagation();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, draw);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  model.on("change:mask_bytes", () => {
    if (stroke) return;
    read();
    draw();
  });
  read();
  return drawOver;
}

// Click to pick a pixel, or use the arrow keys once the image has the focus.
function pick({ model, canvas, context, size, position, draw }) {
  canvas.className = "fcs-pixel-picker";
  canvas.setAttribute("aria-label", `${model.get("name")}; click or use the arrow keys to pick a pixel`);

  function drawOver() {
    const { zoom } = size();
    context.lineWidth = 2;
    context.strokeStyle = "rgb(237, 140, 51)";
    context.strokeRect(model.get("column") * zoom - 1, model.get("row") * zoom - 1, zoom + 2, zoom + 2);
  }

  function choose(row, column) {
    const { height, width } = size();
    model.set("row", Math.min(height - 1, Math.max(0, row)));
    model.set("column", Math.min(width - 1, Math.max(0, column)));
    model.save_changes();
  }

  canvas.addEventListener("click", (event) => {
    const { x, y } = position(event);
    choose(Math.floor(y), Math.floor(x));
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    choose(model.get("row") + move[0], model.get("column") + move[1]);
    event.preventDefault();
    event.stopPropagation(); // the notebook has other uses for them
  });

  for (const name of ["row", "column"]) model.on(`change:${name}`, draw);
  return drawOver;
}

const MODES = { paint, pick };

export default { render };

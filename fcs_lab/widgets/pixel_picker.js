// An image in which one pixel is picked: with a click, or with the arrow keys once it has the focus.

function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "fcs-pixel-picker";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "image; click or use the arrow keys to pick a pixel");
  canvas.style.cssText = "cursor: crosshair; touch-action: none; border: 1px solid #999";
  el.append(canvas);
  const context = canvas.getContext("2d");
  const picture = new Image();

  function draw() {
    const [height, width, zoom] = ["height", "width", "zoom"].map((name) => model.get(name));
    canvas.width = width * zoom;
    canvas.height = height * zoom;
    context.imageSmoothingEnabled = false;
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const [row, column] = [model.get("row"), model.get("column")];
    context.lineWidth = 2;
    context.strokeStyle = "rgb(237, 140, 51)";
    context.strokeRect(column * zoom - 1, row * zoom - 1, zoom + 2, zoom + 2);
  }

  function pick(row, column) {
    model.set("row", Math.min(model.get("height") - 1, Math.max(0, row)));
    model.set("column", Math.min(model.get("width") - 1, Math.max(0, column)));
    model.save_changes();
  }

  function readPicture() {
    const view = model.get("image_png");
    if (!view || !view.byteLength) return;
    URL.revokeObjectURL(picture.src);
    picture.src = URL.createObjectURL(new Blob([view], { type: "image/png" }));
  }
  picture.onload = draw;

  canvas.addEventListener("click", (event) => {
    // Where the pointer is, in the image's pixels, however the page scales the canvas.
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * model.get("height"));
    const column = Math.floor(((event.clientX - box.left) / box.width) * model.get("width"));
    pick(row, column);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    pick(model.get("row") + move[0], model.get("column") + move[1]);
    event.preventDefault();
    event.stopPropagation(); // the notebook has other uses for them
  });

  model.on("change:image_png", readPicture);
  for (const name of ["row", "column", "height", "width", "zoom"]) model.on(`change:${name}`, draw);
  draw();
  readPicture();
  return () => URL.revokeObjectURL(picture.src);
}

export default { render };

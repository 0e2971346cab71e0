
"use strict";
const pictures = JSON.parse(document.getElementById("pictures").textContent);

document.querySelectorAll(".plane").forEach((section, plane) => {
  const slider = section.querySelector("input");
  const output = section.querySelector("output");
  const images = section.querySelectorAll("img");
  const indices = JSON.parse(section.dataset.indices);
  const { length, step, origin } = section.dataset;

  function show() {
    const position = Number(slider.value);
    const index = indices[position];
    const slice = `slice ${index + 1} of ${length}`;
    const state = `${slice}, ${(index * step).toFixed(1)} mm from the ${origin}`;
    images.forEach((image, panel) => {
      image.src = "data:image/jpeg;base64," + pictures[plane][panel][position];
      image.alt = `${image.dataset.name}, ${section.dataset.plane} ${slice}`;
    });
    output.textContent = state;
    slider.setAttribute("aria-valuetext", state);
  }

  slider.addEventListener("input", show);
  show();
});

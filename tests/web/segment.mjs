// Segments an image with an exported folder in transformers.js, in Node:
//   node segment.mjs FOLDER IMAGE CLASSES.u8 [DTYPE]
// CLASSES.u8 gets a class index for each pixel, row by row; prints as JSON the shape of what
// the model gets, the image's size and the names found.
import { writeFile } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";

import { env, pipeline, RawImage } from "@huggingface/transformers";

const [folder, image, output, dtype = null] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder)) + "/";
const segmenter = await pipeline("image-segmentation", basename(resolve(folder)), { dtype });
const picture = await RawImage.read(image);
const inputs = (await segmenter.processor(picture)).pixel_values.dims;
const segments = await segmenter(picture);
const { width, height } = segments[0].mask;
const classes = new Uint8Array(width * height).fill(255);
for (const { label, mask } of segments) {
  const index = segmenter.model.config.label2id[label];
  mask.data.forEach((inside, pixel) => {
    if (inside) classes[pixel] = index;
  });
}
await writeFile(output, classes);
console.log(JSON.stringify({ inputs, width, height, labels: segments.map(({ label }) => label) }));

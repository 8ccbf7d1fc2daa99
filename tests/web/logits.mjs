// Runs an exported graph with onnxruntime-web (wasm):
//   node logits.mjs MODEL.onnx PIXELS.f32 BATCH HEIGHT WIDTH LOGITS.f32
// Both .f32 files hold little-endian float32, row-major; prints the logits' shape as JSON.
import { readFile, writeFile } from "node:fs/promises";

import * as ort from "onnxruntime-web";

const [model, pixels, batch, height, width, output] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(await readFile(model), { executionProviders: ["wasm"] });
const bytes = await readFile(pixels);
const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
const input = new ort.Tensor("float32", values, [Number(batch), 3, Number(height), Number(width)]);
const { logits } = await session.run({ pixel_values: input });
await writeFile(output, new Uint8Array(logits.data.buffer, logits.data.byteOffset, logits.data.byteLength));
console.log(JSON.stringify(logits.dims));

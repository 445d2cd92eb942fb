// Continues prompts with a release directory, as a program with Transformers.js does; JSON in, JSON out:
//
//     echo '{"prompts": ["The king"], "max_new_tokens": 8}' | node generate.mjs RELEASE

import path from "node:path";
import { json } from "node:stream/consumers";

import { env, pipeline } from "@huggingface/transformers";

const release = path.resolve(process.argv[2]);
const { prompts, max_new_tokens } = await json(process.stdin);

env.allowRemoteModels = false; // the directory has to be enough
env.localModelPath = path.dirname(release);

const generator = await pipeline("text-generation", path.basename(release));

const rows = [];
for (const prompt of prompts) {
  const inputs = generator.tokenizer(prompt, { add_special_tokens: false });
  const [tokens] = (await generator.model.generate({ ...inputs, max_new_tokens })).tolist();
  const [{ generated_text }] = await generator(prompt, { max_new_tokens });
  const token_ids = inputs.input_ids.tolist()[0].map(Number);
  rows.push({ token_ids, new_token_ids: tokens.slice(token_ids.length).map(Number), text: generated_text });
}
console.log(JSON.stringify(rows));

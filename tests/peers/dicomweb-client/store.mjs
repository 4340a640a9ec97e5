// Stores files by the JavaScript DICOMweb client, then says which instances are found:
// node store.mjs PACKAGES ROOT FILE...
import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";

const [packages, url, ...files] = process.argv.slice(2);
const require = createRequire(`${packages}/package.json`);
globalThis.XMLHttpRequest = require("xhr2"); // the client is made for browsers
const { api } = require("dicomweb-client");

const datasets = await Promise.all(files.map(async (file) => new Uint8Array(await readFile(file)).buffer));
const client = new api.DICOMwebClient({ url });
await client.storeInstances({ datasets });
const found = await client.searchForInstances();
console.log(JSON.stringify(found.map((instance) => instance["00080018"].Value[0])));

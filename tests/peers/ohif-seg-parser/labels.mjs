// The labels that the SEG parser of the OHIF viewer (@cornerstonejs/adapters) reads out of a SEG that lies on a series.
//   node labels.mjs SERIES_FOLDER SEG.dcm OUT
// OUT gets a byte a voxel, image after image, row after row. The images are named on stdout, in the order of OUT, as
// {"images": [SOPInstanceUID, ...], "overlapping": bool}: the parser paints on the images that it is given, in any order.
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

// The parser is made for browsers, and its modules look for one when they are loaded.
Object.assign(globalThis, { window: globalThis, self: globalThis });
globalThis.document = { createElement: () => ({ style: {}, getContext: () => null }) };
const { metaData } = await import('@cornerstonejs/core');
const { adaptersSEG } = await import('@cornerstonejs/adapters');
const { data } = (await import('dcmjs')).default;

const [folder, seg, out] = process.argv.slice(2);

function bytesOf(file) {
  const content = readFileSync(file);
  return content.buffer.slice(content.byteOffset, content.byteOffset + content.byteLength);
}

function headerOf(file) {
  return data.DicomMetaDictionary.naturalizeDataset(data.DicomMessage.readFile(bytesOf(file)).dict);
}

const headers = new Map(readdirSync(folder).sort().map((name) => [`file:${name}`, headerOf(join(folder, name))]));

const modules = {
  instance: (image) => image,
  generalSeriesModule: (image) => ({ seriesInstanceUID: image.SeriesInstanceUID, modality: image.Modality }),
  generalImageModule: (image) => ({ sopInstanceUID: image.SOPInstanceUID, instanceNumber: image.InstanceNumber }),
  sopCommonModule: (image) => ({ sopInstanceUID: image.SOPInstanceUID }),
  imagePlaneModule(image) {
    const cosines = image.ImageOrientationPatient.map(Number);
    const [rowPixelSpacing, columnPixelSpacing] = image.PixelSpacing.map(Number);
    return {
      frameOfReferenceUID: image.FrameOfReferenceUID,
      rows: image.Rows,
      columns: image.Columns,
      imageOrientationPatient: cosines,
      rowCosines: cosines.slice(0, 3),
      columnCosines: cosines.slice(3),
      imagePositionPatient: image.ImagePositionPatient.map(Number),
      pixelSpacing: [rowPixelSpacing, columnPixelSpacing],
      rowPixelSpacing,
      columnPixelSpacing,
      sliceThickness: Number(image.SliceThickness),
    };
  },
};

function get(module, imageId) {
  const image = headers.get(imageId);
  return image && modules[module]?.(image);
}

metaData.addProvider(get);
const imageIds = [...headers.keys()];
const read = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(imageIds, bytesOf(seg), {
  metadataProvider: { get },
});
const [labelmap] = read.labelMapImages; // more than one where segments overlap
writeFileSync(out, Buffer.concat(labelmap.map((image) => Buffer.from(image.getPixelData()))));
console.log(JSON.stringify({
  images: imageIds.map((id) => headers.get(id).SOPInstanceUID),
  overlapping: read.overlappingSegments,
}));
process.exit(); // its timers would go on

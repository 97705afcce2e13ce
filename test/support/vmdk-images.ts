/** VMDK images of two runs, made comparable. */

import fs from "node:fs";
import path from "node:path";

const DESCRIPTOR_BYTES = 20 * 512;

/** Content identities are random, and written with as many digits as they need. */
export function clearIdentities(directory: string): void {
  for (const name of fs.readdirSync(directory)) {
    if (!/vmdk|^c$|foo$/.test(name)) continue;
    const filename = path.join(directory, name);
    const fd = fs.openSync(filename, "r+");
    const { size } = fs.fstatSync(fd);
    const head = Buffer.alloc(512 + DESCRIPTOR_BYTES);
    const length = fs.readSync(fd, head, 0, head.length, 0);
    const start = head.toString("latin1", 0, 4) === "KDMV" ? 512 : 0;
    const area = head.subarray(start, length);
    const end = area.indexOf(0);
    const text = area.toString("latin1", 0, end < 0 ? area.length : end);
    const clear = text.replace(/^(CID|parentCID)=(?!ffffffff)[0-9a-f]+$/gm, "$1=12345678");
    if (clear !== text) {
      const whole = end < 0 && start === 0 ? Buffer.alloc(clear.length) : Buffer.alloc(area.length);
      whole.write(clear, "latin1");
      fs.writeSync(fd, whole, 0, whole.length, start);
      if (start === 0) fs.ftruncateSync(fd, end < 0 ? clear.length : size);
    }
    fs.closeSync(fd);
  }
}

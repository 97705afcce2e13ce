/**
 * Command lines for qemu-io and qemu-img with filters between image and file, as `io-filters.test.ts` runs them beside
 * ours: copy-on-read, throttle, quorum, blkverify, blklogwrites, preallocate, blkdebug, null-aio.
 */

/** Filters that change what becomes of requests. */
export const FILTER_CASES = String.raw`
-c info -c map -c length null-aio://
-c info null-aio://x
--image-opts -c info -c 'read 0 512' -c map -c 'alloc 0 1M' driver=null-aio,size=1M,latency-ns=1
--image-opts -c info -c 'read 0 512' -c map driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2
--image-opts -c info -c 'read 0 512' -c map driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2,bottom=foo
--image-opts -c info -c 'read 0 512' -c map driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2,file.backing.node-name=foo,bottom=foo
--image-opts -c info -c 'read 0 512' -c map driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2,bottom=
--image-opts -c info -c 'read 0 512' -c map driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2,foo=bar
--image-opts -c info -c 'read 0 512' -c map driver=copy-on-read
--image-opts -r -c info -c 'read 0 512' -c map driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2
-r --image-opts -c length -c 'read 0 64k' driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2,file.read-only=off
--image-opts -c length -c 'write 0 1k' -c 'write -z 64k 64k' -c 'discard 128k 64k' -c 'truncate 2M' -c map -c 'write -c 192k 64k' -c map -c 'read 1M 1k' -c 'read 1000k 900k' -c map driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2
--image-opts -c 'read 1k 64k' -c 'readv 300k 1k 1k 64k' -c 'aio_read 500k 300k' -c aio_flush -c map -c 'read -v 1000 20' driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2
--image-opts -c 'read -P 5 1k 64k' driver=copy-on-read,file.driver=raw,file.file.filename=a.raw
--image-opts -c info -c map driver=preallocate,file.driver=file,file.filename=b.raw
--image-opts -c info -c map driver=preallocate,file.filename=b.raw
--image-opts -c info -c 'write 1M 64k' -c map driver=raw,file.driver=preallocate,file.file.driver=file,file.file.filename=b.raw
--image-opts -c 'write 0 64k' -c 'write 64k 400k' -c map -c 'truncate 2M' -c 'write 1900k 100k' -c map driver=qcow2,file.driver=preallocate,file.file.driver=file,file.file.filename=t.qcow2
--image-opts -c 'write 0 64k' -c 'reopen -r' -c 'read 0 64k' -c 'reopen -w' -c 'write 64k 64k' driver=qcow2,file.driver=preallocate,file.file.driver=file,file.file.filename=t.qcow2
--image-opts -c 'write 0 64k' driver=qcow2,file.driver=preallocate,file.prealloc-align=1000,file.file.driver=file,file.file.filename=t.qcow2
--image-opts -c 'write 0 64k' driver=qcow2,file.driver=preallocate,file.prealloc-align=0,file.prealloc-size=0,file.file.driver=file,file.file.filename=t.qcow2
--image-opts -c 'write 0 64k' driver=qcow2,file.driver=preallocate,file.prealloc-size=x,file.file.driver=file,file.file.filename=t.qcow2
--image-opts -c 'truncate 2M' -c length -c 'write 1500k 10k' -c 'truncate 3M' -c 'write 2M 1k' -c map -c info -c 'truncate 3k' -c length driver=preallocate,file.driver=file,file.filename=b.raw
--image-opts -r -c 'read 0 64k' -c length driver=preallocate,file.driver=file,file.filename=b.raw
--image-opts -c 'read 0 64k' -c length driver=preallocate
-c info -c map blkverify:a.raw:e.raw
-c info -c map blkverify:a.raw:c.raw
-f raw -c 'read 0 512' blkverify:a.raw:c.raw
-f raw -c 'read 500k 200k' blkverify:a.raw:c.raw
-f raw -c 'write 0 4k' -c 'read 0 1k' -c 'read 1k 100k' -c 'write -P 1 300k 200k' -c map blkverify:b.raw:t.qcow2
-f raw -c 'aio_read 500k 200k' -c aio_flush -c length blkverify:a.raw:c.raw
-c length blkverify:a.raw
-c length blkverify:
-f raw -c length blkverify:a.raw:nope
-f raw -c length blkverify:nope:a.raw
--image-opts -c length driver=blkverify,raw.filename=a.raw
--image-opts -c length driver=blkverify,raw.filename=a.raw,test.filename=c.raw
--image-opts -c length driver=blkverify,x-raw=a.raw,x-image=c.raw
--image-opts -c length driver=blkverify,test.filename=a.raw
--image-opts -c length -c 'read 1M 512' -c 'read 1536k 512' driver=blkverify,raw.filename=c.raw,test.driver=file,test.filename=d.raw
--image-opts -c length -c 'read 1M 512' -c 'read 1536k 512' -c map driver=blkverify,raw.filename=d.raw,test.driver=file,test.filename=c.raw
--image-opts -c 'write 0 4k' driver=blkverify,raw.driver=blkdebug,raw.image.filename=a.raw,raw.inject-error.0.event=none,raw.inject-error.0.errno=28,test.driver=file,test.filename=c.raw
--image-opts -c 'write 0 4k' driver=blkverify,test.driver=blkdebug,test.image.filename=a.raw,test.inject-error.0.event=none,test.inject-error.0.errno=28,raw.driver=file,raw.filename=c.raw
--image-opts -c 'read 0 4k' driver=blkverify,test.driver=blkdebug,test.image.filename=a.raw,test.inject-error.0.event=none,test.inject-error.0.errno=28,raw.driver=blkdebug,raw.image.filename=b.raw,raw.inject-error.0.event=none,raw.inject-error.0.errno=5
--image-opts -t writeback -c 'write -P 1 0 512' -c 'write -P 2 512 1k' -c 'write -z 4k 4k' -c 'discard 8k 4k' -c flush -c 'write 3 5' -c flush -c 'write -zu 4k 4k' driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log
--image-opts -t writeback -c 'write -P 1 0 512' -c 'write 512k 4k' -c 'read 0 1k' -c flush -c flush driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-sector-size=4096
--image-opts -t writeback -c 'write -P 1 0 4k' -c info -c map -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-append=on
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-sector-size=4097
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-sector-size=0
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-sector-size=x
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-sector-size=16M
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-sector-size=256
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-super-update-interval=0
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=log,log-append=on,log-sector-size=512
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw,log.driver=raw,log.file.filename=short,log-append=on
--image-opts -c length driver=blklogwrites,file.driver=raw,file.file.filename=a.raw
--image-opts -c length driver=blklogwrites,file.filename=a.raw,log.filename=log
--image-opts -c length driver=blklogwrites,log.driver=raw,log.file.filename=log
`;

/** Votes, with copies that differ or fail. */
export const QUORUM_CASES = String.raw`
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=0
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=0
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=4
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=4
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=x
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=x
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=-1
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=-1
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,read-pattern=foo
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,read-pattern=foo
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,blkverify=on
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,blkverify=on
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,foo=bar
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,foo=bar
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,rewrite-corrupted=on,blkverify=on
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,rewrite-corrupted=on,blkverify=on
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,rewrite-corrupted=on,read-pattern=fifo
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,rewrite-corrupted=on,read-pattern=fifo
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,blkverify=on,read-pattern=fifo
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,blkverify=on,read-pattern=fifo
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,blkverify=maybe
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,blkverify=maybe
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,rewrite-corrupted=maybe
--image-opts -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,rewrite-corrupted=maybe
--image-opts -c length -c info driver=quorum,vote-threshold=1
--image-opts -c length -c info driver=quorum
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.1.driver=raw,children.1.file.filename=b.raw
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=b.raw
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=a.raw
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.0.file.filename=b.raw
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.0.filename=b.raw
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.0=foo
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.x=foo
--image-opts -c length -c info driver=quorum,vote-threshold=2,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=raw,children.1.file.filename=d.raw
--image-opts -c length -c info driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=nope
--image-opts -c info -c 'write -P 3 0 4k' -c 'read -P 3 0 4k' -c map -c 'alloc 0 1M' -c 'discard 0 4k' -c flush -c 'truncate 2M' -c 'write -z 0 64k' -c 'write -zu 64k 64k' -c map -c 'write -c 0 64k' -c 'aio_write 512k 64k' -c aio_flush -c 'writev 0 1k 1k' -c 'readv 0 1k 1k' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2
--image-opts -t writeback -c info -c 'write -P 3 0 4k' -c 'read -P 3 0 4k' -c map -c 'alloc 0 1M' -c 'discard 0 4k' -c flush -c 'truncate 2M' -c 'write -z 0 64k' -c 'write -zu 64k 64k' -c map -c 'write -c 0 64k' -c 'aio_write 512k 64k' -c aio_flush -c 'writev 0 1k 1k' -c 'readv 0 1k 1k' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=3,read-pattern=fifo
--image-opts -c 'read -P 5 0 4k' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2
--image-opts -c 'read -P 0 0 4k' -c 'read 0 1M' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,rewrite-corrupted=on
--image-opts -r -c 'read -P 0 0 4k' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,rewrite-corrupted=on
--image-opts -c 'read -P 5 0 4k' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=3
--image-opts -c 'read -P 5 0 4k' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,children.2.driver=raw,children.2.file.filename=c.raw,vote-threshold=2,read-pattern=fifo
--image-opts -c 'read -P 5 0 4k' -c 'read 700k 4k' driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2
--image-opts -c 'read 700k 4k' -c 'read 599k 4k' -c length driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,blkverify=on
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=write,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=write,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=read,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2
-t writeback --image-opts -c 'read 0 4k' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=read,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2,read-pattern=fifo
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=flush,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=flush,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=write,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=write,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=5,children.2.inject-error.0.iotype=write,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=5,children.2.inject-error.0.iotype=read,vote-threshold=2
-t writeback --image-opts -c 'read 0 4k' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=5,children.2.inject-error.0.iotype=read,vote-threshold=2,read-pattern=fifo
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=28,children.0.inject-error.0.iotype=flush,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=flush,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=5,children.2.inject-error.0.iotype=flush,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=write,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=write,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=write,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=read,vote-threshold=2
-t writeback --image-opts -c 'read 0 4k' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=read,vote-threshold=2,read-pattern=fifo
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=flush,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=flush,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=flush,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=write,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=write,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=1,children.2.inject-error.0.iotype=write,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=1,children.2.inject-error.0.iotype=read,vote-threshold=2
-t writeback --image-opts -c 'read 0 4k' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=read,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=1,children.2.inject-error.0.iotype=read,vote-threshold=2,read-pattern=fifo
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=blkdebug,children.0.image.driver=raw,children.0.image.file.filename=b.raw,children.0.inject-error.0.event=none,children.0.inject-error.0.errno=5,children.0.inject-error.0.iotype=flush,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=flush,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=1,children.2.inject-error.0.iotype=flush,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=write,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2
-t writeback --image-opts -c 'read 0 4k' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=read,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2,read-pattern=fifo
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=28,children.1.inject-error.0.iotype=flush,children.2.driver=raw,children.2.file.filename=e.raw,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=write,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=write,vote-threshold=2
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=read,vote-threshold=2
-t writeback --image-opts -c 'read 0 4k' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=read,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=read,vote-threshold=2,read-pattern=fifo
-t writeback --image-opts -c 'write -P 1 0 4k' -c 'read 0 4k' -c 'write -z 8k 4k' -c 'flush' driver=quorum,children.0.driver=raw,children.0.file.filename=b.raw,children.1.driver=blkdebug,children.1.image.driver=raw,children.1.image.file.filename=c.raw,children.1.inject-error.0.event=none,children.1.inject-error.0.errno=5,children.1.inject-error.0.iotype=flush,children.2.driver=blkdebug,children.2.image.driver=raw,children.2.image.file.filename=e.raw,children.2.inject-error.0.event=none,children.2.inject-error.0.errno=28,children.2.inject-error.0.iotype=flush,vote-threshold=2
`;

/** blkdebug's options and configuration files. */
export const BLKDEBUG_OPTION_CASES = String.raw`
-f raw -c 'read 0 512' -c 'read 512 512' -c 'write 0 512' -c 'read 0 512' -c 'read 512 512' -c 'read 0 4k' -c 'aio_read 0 4k' -c aio_flush blkdebug:a.conf:r.raw
-f raw -c 'read 0 512' blkdebug:b.conf:r.raw
-f raw -c 'read 0 512' blkdebug:c.conf:r.raw
-f raw -c 'read 0 512' blkdebug:d.conf:r.raw
-f raw -c 'read 0 512' blkdebug:e.conf:r.raw
-f raw -c 'read 0 512' blkdebug:f.conf:r.raw
-f raw -c 'read 0 512' blkdebug:g.conf:r.raw
-f raw -c 'read 0 512' blkdebug:h.conf:r.raw
-f raw -c 'read 0 512' blkdebug:i.conf:r.raw
-f raw -c 'read 0 512' blkdebug:j.conf:r.raw
-f raw -c 'read 0 512' blkdebug:k.conf:r.raw
-f raw -c 'read 0 512' blkdebug:l.conf:r.raw
-f raw -c 'read 0 512' blkdebug:m.conf:r.raw
-f raw -c 'read 0 512' blkdebug:n.conf:r.raw
-f raw -c 'read 0 512' blkdebug:o.conf:r.raw
-f raw -c 'read 0 512' blkdebug:p.conf:r.raw
-f raw -c 'read 0 512' blkdebug:q.conf:r.raw
-f raw -c 'read 0 512' blkdebug:r.conf:r.raw
-f raw -c 'read 0 512' blkdebug:.:r.raw
-f raw -c 'read 0 512' blkdebug
-f raw -c 'read 0 512' blkdebug:
-f raw -c 'read 0 512' blkdebug:r.raw
-f raw -c 'read 0 512' blkdebug::
-f raw -c 'read 0 512' blkdebug::nope
-c 'read 0 512' -c info blkdebug::q.qcow2
-f blkdebug -c 'read 0 512' -c info -c map blkdebug::q.qcow2
-f blkdebug -c 'read 0 512' -c info -c map q.qcow2
-f qcow2 -c 'read 0 512' -c info -c map blkdebug::q.qcow2
--image-opts -c length driver=blkdebug
--image-opts -c length driver=blkdebug,image.filename=r.raw
--image-opts -c length driver=blkdebug,image=foo
--image-opts -c length driver=blkdebug,x-image=r.raw
--image-opts -c length driver=blkdebug,x-image=r.raw,config=a.conf,foo=bar
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,inject-error.0.foo=bar
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,inject-error.foo=bar
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,inject-error.1.event=read_aio
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,inject-error=foo
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,set-state.0.event=foo
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,set-state.0.event=read_aio,set-state.0.new_state=
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.0=write
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.0=foo
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.0=resize,take-child-perms.1=consistent-read,take-child-perms.2=write-unchanged,unshare-child-perms.0=write
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms=write
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.1=write
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,unshare-child-perms.0=graph-mod
--image-opts -r -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.0=write
--image-opts -r -c length -c 'read 0 1' driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.0=resize
--image-opts -c length -c 'write 0 1k' driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.unshare-child-perms.0=write,file.unshare-child-perms.1=resize
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.x=write
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.0.foo=write
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,align=3
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,align=x
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,align=2147483648
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,align=1M
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,align=2M
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,max-transfer=511,align=512
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,opt-write-zero=511,align=512
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,opt-write-zero=1000,max-write-zero=1500
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,opt-discard=1000,max-discard=1500
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=r.raw,max-discard=2G
--image-opts -c length driver=blkdebug,image.driver=file,image.filename=odd.raw,align=4096
--image-opts -c length driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=odd.raw,file.align=4096
-r --image-opts -c length -c 'read 999k 1k' -c 'read 0 1000000' driver=blkdebug,image.driver=file,image.filename=odd.raw,align=4096
--image-opts -c length -c 'write 0 1k' -c 'truncate 2M' -c 'write 1M 4k' driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=q.qcow2,file.align=4096
--image-opts -c 'write 0 1k' -c 'read 0 1k' -c 'write -z 100 5000' -c 'discard 4k 64k' -c 'write 1000 70000' -c map driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.align=4096,file.max-transfer=16k,file.opt-write-zero=8k,file.max-write-zero=32k,file.opt-discard=16k,file.max-discard=64k
--image-opts -c 'read 0 4k' -c 'read 512 4k' -c 'aio_read 0 4k' -c aio_flush driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=0,file.inject-error.0.errno=0
--image-opts -c 'read 0 4k' -c 'read 512 4k' -c 'read 0 512' driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=0,file.inject-error.0.errno=999
--image-opts -c 'read 0 4k' -c 'read 512 4k' -c 'read 0 512' driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.inject-error.0.event=read_aio,file.inject-error.0.sector=-1,file.inject-error.0.errno=-5
--image-opts -c 'read 0 4k' -c 'map' -c 'alloc 0 1M' driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=block-status
--image-opts -c 'read 0 4k' -c 'break read_aio A' -c 'break read_aio B' -c 'remove_break A' -c 'remove_break B' -c 'break pwritev A' -c 'remove_break A' -c 'read 0 512' driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw
--image-opts -c 'break read_aio A' -c 'aio_read 0 4k' -c 'wait_break A' -c 'remove_break A' -c aio_flush driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw
--image-opts -c 'break read_aio A' -c 'break read_aio A' -c 'aio_read 0 4k' -c 'wait_break A' -c 'resume A' -c 'sleep 50' -c 'resume A' -c aio_flush driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw
--image-opts -c 'break read_aio A' -c 'break read_aio B' -c 'aio_read 0 4k' -c 'wait_break A' -c 'resume B' -c 'resume A' -c 'sleep 50' -c aio_flush driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw
--image-opts -c 'break read_aio A' -c 'aio_read 0 4k' -c 'wait_break A' -c 'break read_aio A' -c 'aio_read 4k 4k' -c 'sleep 50' -c 'resume A' -c 'sleep 50' -c 'resume A' -c aio_flush driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw
`;

/** What qemu-img says of such graphs: names and sizes. */
export const NAME_CASES = String.raw`
info --image-opts driver=blkdebug,image.driver=file,image.filename=r.raw,take-child-perms.0=consistent-read
info --image-opts driver=blkdebug,image.driver=file,image.filename=r.raw,unshare-child-perms.0=write,config=a.conf
info --image-opts driver=blklogwrites,file.filename=a.raw,log.filename=log
info --image-opts driver=blkverify,x-raw=a.raw,x-image=c.raw
info --image-opts driver=copy-on-read,file.driver=qcow2,file.file.filename=q.qcow2
info --image-opts driver=null-aio,size=5k
info --image-opts driver=preallocate,prealloc-size=64k,file.filename=c.raw
info --image-opts driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=1,rewrite-corrupted=on
info --image-opts driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=2,blkverify=on,read-pattern=fifo
info --image-opts driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.align=4096,file.max-transfer=16k,file.opt-write-zero=8k,file.max-write-zero=32k,file.opt-discard=16k,file.max-discard=64k
info --image-opts driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,file.inject-error.0.event=read_aio,file.inject-error.0.errno=5,file.set-state.0.event=none,file.set-state.0.new_state=3
info blkdebug::a.raw
info blkdebug::r.raw
info blkdebug:a.conf:r.raw
info blkverify:a.raw:c.raw
map --image-opts driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=1
map --output=json --image-opts driver=quorum,children.0.driver=raw,children.0.file.filename=a.raw,children.1.driver=raw,children.1.file.filename=b.raw,vote-threshold=1
map --output=json --image-opts driver=quorum,vote-threshold=1,children.0.driver=qcow2,children.0.file.filename=q.qcow2,children.1.driver=raw,children.1.file.filename=e.raw
map --output=json -f raw blkverify:a.raw:c.raw
map null-aio://
`;

/** Limits of a group, good and bad ones. */
export const THROTTLE_CASES = String.raw`
--image-opts -c info driver=throttle,throttle-group=foo,file.driver=file,file.filename=c.raw
--image-opts -c info driver=throttle,throttle-group=,file.driver=file,file.filename=c.raw
--image-opts -c info driver=throttle,file.driver=file,file.filename=c.raw
--image-opts -c info driver=throttle,throttle-group=foo
--image-opts -c info driver=throttle,throttle-group=foo,limits.iops-total=3,file.filename=c.raw
--object throttle-group,id=tg --image-opts -c info -c map -c 'write 0 1k' -c 'write -z 4k 4k' -c 'discard 0 4k' -c 'truncate 2M' -c flush -c 'write -c 0 64k' driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-bps-total=1000 --image-opts -c 'aio_read 0 64k' -c 'aio_read 0 64k' -c aio_flush driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg --object throttle-group,id=th --image-opts -c 'reopen -o throttle-group=th' -c 'reopen -o throttle-group=foo' -c 'reopen' driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg --object throttle-group,id=tg -c length
--object throttle-group -c length
--object throttle-group,id=tg,limits.iops-total=5,limits.bps-total=1000 --image-opts -c length driver=raw,file.driver=throttle,file.throttle-group=tg,file.file.driver=file,file.file.filename=c.raw
--object throttle-group,id=tg,x-bps-total=1,x-bps-read=1 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-bps-total-max=5 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-bps-total=10,x-bps-total-max=5 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=-1 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=foo --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,foo=bar --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,limits=5 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=5,x-iops-total-max=10,x-iops-total-max-length=0 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=5,x-iops-total-max-length=5 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=1000000000000000 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=1000000000000001 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-size=4 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=5,x-iops-total-max=100000000000000,x-iops-total-max-length=1000 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,limits.foo=5 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=1k --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,limits.iops-total=1k --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,limits.iops-total=x --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,limits.iops-total=-1 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,limits.iops-total-max-length=0 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=5,limits.iops-total=7 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total= --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total-max-length=-1 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total-max-length=5000000000 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-bps-read=5,x-bps-total-max=7 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
--object throttle-group,id=tg,x-iops-total=99999999999999999999 --image-opts -c length driver=throttle,throttle-group=tg,file.driver=file,file.filename=c.raw
`;

/** What `-T` takes. */
export const TRACE_CASES = String.raw`
-T foo -c length r.raw
-f raw -T enable=foo -c length r.raw
-f raw -T enable=bdrv_co_preadv -c length r.raw
-f raw -T events=nope -c length r.raw
-f raw -T file=nope/x -c length r.raw
-f raw -T foo=bar -c length r.raw
-f raw -T "" -c length r.raw
-f raw --trace enable=foo,file=x -c length r.raw
`;

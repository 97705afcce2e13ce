/**
 * Command lines for qemu-io, as `io.test.ts` runs them beside ours. Only such whose answer is always the same: which
 * of several asynchronous requests ends first is a matter of chance.
 */

/** What is read and written, with every option of every command. On `r.raw`, a megabyte of zeroes. */
export const RAW_CASES = String.raw`
-f raw -c 'read 0 512' -c 'read 2M 1' -c 'read 0 512' r.raw
-f raw -c 'read' -c 'read 0' -c 'read 0 1 2' -c 'read x 1' -c 'read 0 x' -c 'read -x 0 1' -c 'read -P 0 512' -c 'read -P' -c 'read 0 512 -P' r.raw
-f raw -c 'read -P x 0 512' -c 'read -P 256 0 512' -c 'read -P -1 0 512' -c 'read -P 0xff 0 512' -c 'read -P 0 0 512' r.raw
-f raw -c 'read -s 0 0 512' -c 'read -l 4 0 512' -c 'read -P 1 -s 1 0 512' -c 'read -P 0 -s 513 0 512' -c 'read -P 0 -s 512 0 512' r.raw
-f raw -c 'read -P 0 -l 513 0 512' -c 'read -P 0 -s 500 -l 13 0 512' -c 'read -P 0 -s x 0 512' -c 'read -P 0 -l x 0 512' -c 'read -P 0 -l 0 0 5' -c 'read -P 0 -l -1 0 5' r.raw
-f raw -c 'read -C 0 4k' -c 'read -Cq 0 4k' -c 'read -q 0 4k' -c 'read -v 0 40' -c 'read -v 0x10 33' -c 'read -qv 0 16' -c 'read -Cv 0 16' -c 'read -v -P 1 0 16' -c 'read -q -P 1 0 16' r.raw
-f raw -c 'read -b 0 512' -c 'read -p 0 512' -c 'read -a 0 512' -c 'read -bp 0 512' -c 'read -b 1 512' -c 'read -b 0 1' r.raw
-f raw -c 'read -1 5' -c 'read 0 -1' -c 'read 1023k 2k' -c 'read 0 3G' -c 'read 0 2G' -c 'read 0 2147483137' r.raw
-f raw -c 'read 7E 1' -c 'read 8E 1' -c 'read 16E 1' -c 'read 0 8E' -c 'read 1.5k 1' -c 'read 0 1b' -c 'read 0 1K' -c 'read 0 1kb' -c 'read 0 0' -c 'read 0 1023' r.raw
-f raw -c "read ' ' 1" -c 'read 0 0x200' -c 'read 0 0x200k' -c 'read 010 08' -c 'read 1e3 1' -c 'read -- -1 5' -c 'read 0 --help' -c 'read --foo 0 1' -c 'read -P1 -s0 -l1 0 1' r.raw
-f raw -c 'read -v 0 256' -c 'read -v 1 255' -c 'read -v 250 20' bytes.raw
-f raw -c 'read 0 0' -c 'read -P 1 0 0' -c 'read -v 0 0' -c 'read 1M 0' -c 'read 1048577 0' r.raw
-f raw -c 'readv -v 0 16 16 ' -c 'writev -P 7 0 16 32' -c 'readv -P 7 0 16 16 16' -c 'readv -qP 1 0 16' -c 'readv -v -P 1 0 16' -c 'readv -qv 0 16' r.raw
-f raw -c 'readv 0 16 x ' -c 'readv 0 -P 3' -c 'readv x 3' -c 'readv -x 0 1' -c 'readv 0 3G' -c 'readv 0 1G 1G' -c 'readv 2M 1' -c 'readv 0' -c 'readv 0 0' -c 'readv -C 0 1 2 3' r.raw
-f raw -c 'writev 0' -c 'writev 0 x' -c 'writev -x 0 1' -c 'writev 2M 1' -c 'writev -f 0 1' -c 'writev -q 0 1' -c 'writev -C 0 1 2 3' -c 'writev -P x 0 1' -c 'writev 0 3G' -c 'writev 0 1G 1G' -c 'writev 0 0' -c 'writev 0 0 0 5' r.raw
-f raw -c 'write -c 0 512' -c 'write -b 0 512' -c 'write -u 0 512' -c 'write -n 0 512' -c 'write -zn 0 512' -c 'write -zu 0 512' -c 'write -zf 0 512' -c 'write -fc 0 512' -c 'write -z -P 3 0 512' r.raw
-f raw -c 'write -s nope 0 512' -c 'write -s bytes.raw -P 3 0 512' -c 'write -z -s bytes.raw 0 512' -c 'write -bz 0 512' -c 'write -bf 0 512' -c 'write -zc 0 512' -c 'write -q 0 512' -c 'write -C 0 512' r.raw
-f raw -c 'write -P x 0 512' -c 'write -P 0777 0 1' -c 'write -P 0xAb 0 1' -c 'write 1M 1' -c 'write 0 1 1' -c 'write 0 2G' -c 'write -z 0 2G' -c 'write -z 0 3G' -c 'write -z 0 7E' -c 'write -a 0 1' -c 'write -p 0 1' -c 'write x 1' -c 'write 0 y' r.raw
-f raw -c 'write -P 5x 0 1' -c 'write -P 010 0 1' -c 'write -P7 0 1' -c 'read -vP7 0 1' -c 'write -P 255 0 1' -c 'write -P +5 0 1' -c 'write -P "" 0 1' -c 'write - 0 1' -c 'write 0 1 --' -c 'write -P 0x100 0 1' -c 'write -P 99999999999 0 1' -c 'write -P 08 1 1' r.raw
-f raw -c 'write -s three 0 10' -c 'read -v 0 10' -c 'write -s empty 0 10' -c 'write -s . 0 10' -c 'write -s three 0 2' -c 'write -s three 0 0' -c 'write -s three 1k 17M' -c 'write -s three 5 900k' r.raw
-f raw -c 'write -c 0 1' -c 'write -c 1 512' -c 'write -b 1 512' -c 'write -b 0 5' -c 'write -bz 1 1' -c 'write -u 0 x' -c 'write -n x 1' -c 'write -n 0 1 1' -c 'write -fc x 1' -c 'write -fb 0 1 1' -c 'write -zP 1 x 1' -c 'write -zP 1 0 1 1' r.raw
-f raw -c 'write -z -u -n -f 0 4k' -c 'write -zn 0 3G' -c 'write -cz 0 5' -c 'write -bz 0 1 2' -c 'write -c -P 1 -s x 1 1' -c 'write -u -n 0 1' -c 'write -un -f -c 0 1' -c 'write -b -u 0 512' -c 'write -b -z -f 0 1' -c 'write -zs x 0 1' -c 'write -ns x 0 1' -c 'write -s x 0 3G' -c 'write -s x y 1' r.raw
-f raw -c 'write -P 9 0 40M' -c 'read -P 9 0 40M' -c 'read 0 40M' -c 'writev -P 8 1 20M 20M' -c 'read -P 8 1 40M' -c 'read -v 41943030 12' long.raw
-f raw -c 'discard 0' -c 'discard x 1' -c 'discard 0 x' -c 'discard 1 1' -c 'discard 0 2G' -c 'discard 0 3G' -c 'discard 0 512' -c 'discard -C 0 512' -c 'discard -q 0 512' -c 'discard 0 512 7' -c 'discard -x 1 1' -c 'discard 2M 512' -c 'discard 0 0' -c 'discard -q 0 512 -C' r.raw
-f raw -c 'write -P 1 0 1M' -c 'discard 4k 64k' -c 'read -P 0 4k 64k' -c 'discard 100k 5000' -c 'write -z 300k 64k' -c 'write -zu 400k 64k' r.raw
-f raw -d ignore -c 'write -P 1 0 1M' -c 'discard 4k 64k' -c 'read -P 1 4k 64k' -c 'write -zu 400k 64k' r.raw
-f raw -c 'truncate x' -c 'truncate 3M' -c 'length' -c 'truncate 1M' -c 'truncate -m falloc 2M' -c 'truncate -m foo 1M' -c 'truncate -m off 1000' -c 'length' -c 'truncate -1' -c 'truncate -- -1' -c 'truncate -x 1' -c 'truncate 1M 2M' -c 'length' r.raw
-f raw -c 'truncate' -c 'truncate -m' -c 'truncate -m off -m full 1M' -c 'truncate -m foo x' -c 'truncate -m full 2M' -c 'truncate -m metadata 3M' -c 'truncate -m falloc 100k' -c 'truncate 0' -c 'length' -c 'map' -c 'alloc 0' -c 'read 0 1' r.raw
-f raw -c 'truncate 1049088' -c length -c map -c 'truncate 1050112' -c length -c 'truncate 1536' -c length -c 'truncate 1500' -c 'length' -c map -c 'read 1400 200' -c 'write 1400 200' r.raw
-f raw -c 'map' -c 'alloc 0' -c 'alloc 0 1M' -c 'alloc 0 2M' -c 'alloc 512k 512k' -c 'alloc 2M' -c 'alloc x' -c 'alloc 0 x' -c 'alloc 1' -c 'alloc 0 1' -c 'alloc 512' -c 'alloc' -c 'alloc 0 1 2' r.raw
-f raw -c 'alloc 1048575' -c 'alloc 1048575 5' -c 'alloc 0 -1' -c 'alloc 7E' -c 'alloc 0 7E' -c 'alloc 0.0005k 0' -c 'alloc -x' -c 'alloc -- 0' r.raw
-f raw -c 'alloc 1. 0' -c 'alloc .5k 0' -c 'alloc 5.k 0' -c 'alloc 0.5k 0' -c 'alloc 0.5 0' -c 'alloc 1.0 0' -c 'alloc 1.1k 0' -c 'alloc 0.1k 0' -c 'alloc +5 0' -c 'alloc -0 0' -c 'alloc nan 0' -c 'alloc inf 0' -c 'alloc 0x 0' -c 'alloc 0x1.8 0' r.raw
-f raw -c 'alloc 0x1b 0' -c 'alloc 0x1E 0' -c 'alloc 0x1K 0' -c 'alloc 0x1M 0' -c 'alloc 0xg 0' -c 'alloc 0X10 0' -c 'alloc 1B 0' -c 'alloc 1t 0' -c 'alloc 1P 0' -c 'alloc 1e 0' -c 'alloc 9223372036854775807 0' -c 'alloc 9223372036854775808 0' -c 'alloc 18446744073709551616 0' r.raw
-f raw -c 'alloc 7.9E 0' -c 'alloc 1k5 0' -c 'alloc 1.5.5 0' -c 'alloc k 0' -c 'alloc 012 0' -c 'alloc 0.1M 0' -c 'alloc 0.0001k 0' -c 'alloc 1.5b 0' -c 'alloc 1.0b 0' -c 'alloc 1.k 0' -c 'alloc 0x1e+1 0' -c 'alloc 99999999999999999999 0' r.raw
-f raw -c map -c 'alloc 0 1G' huge.raw
-f raw -c length -c info -c map -c 'truncate 0' -c info -c 'length x' -c 'info x' -c 'flush x' -c 'aio_flush x' -c 'close x' -c 'flush' -c 'aio_flush' r.raw
-f raw -c 'sleep 10' -c 'sleep x' -c 'sleep' -c 'sleep -1' -c 'sleep 1k' -c 'sleep 5 6' -c 'sleep 0x5' -c 'sleep 010' -c 'sleep +5' -c 'sleep 99999999999999999999' -c 'sleep 08' -c 'sleep -x' -c 'sleep -- 5' r.raw
-f raw -c 'sigraise x' -c 'sigraise 0' -c 'sigraise -1' -c 'sigraise 99' -c 'sigraise 66' -c 'sigraise 65' -c sigraise -c 'sigraise 1k' r.raw
-f raw -c 'break x y' -c 'resume y' -c 'remove_break y' -c 'break x' -c 'resume' -c 'remove_break' -c 'wait_break' -c 'break a b c' r.raw
-f raw -c 'r -x 0 1' -c 'w -x 0 1' -c 't -x 1' -c 'd -x 1 1' -c 'o -x 1' -c 'r 0' -c 'a' -c 'i 5' -c 'r 0 1' -c 'w 0 1' -c 'd 0 1' -c i -c l -c f -c 't 1M' -c 'a 0' -c 'q -x' r.raw
-f raw -c 's 512' -c m -c c -c 'foo' -c '' -c ' ' -c 'foo bar' -c '#comment' -c 'length' -c c -c l r.raw
-f raw -c 'truncate -m off x' -c 'truncate x -m off' -c 'truncate x -moff' -c 'truncate x --' -c 'truncate -- 5k' -c length r.raw
`;

/** Requests beside the commands, each waited for before the next one like it. */
export const AIO_CASES = String.raw`
-f raw -c 'aio_read 0 512' -c 'aio_flush' r.raw
-f raw -c 'aio_write 0 512' r.raw
-f raw -c 'aio_write 2M 512' r.raw
-f raw -c 'aio_write 2M 512' -c aio_flush r.raw
-f raw -c 'aio_read -P 1 0 512' -c aio_flush r.raw
-f raw -c 'aio_read 0 512' -c length -c length r.raw
-f raw -c 'aio_read 0 512' -c 'sleep 50' -c length r.raw
-f raw -c 'aio_read 0 512' -c info -c length r.raw
-f raw -c 'aio_read 0 512' -c 'truncate 1M' -c length r.raw
-f raw -c 'aio_read 0 64k' -c 'read 2M 1' -c length r.raw
-f raw -c 'aio_read 0 512' -c foo -c length r.raw
-f raw -c 'aio_read 0 512' -c 'reopen -r' -c length r.raw
-f raw -c 'aio_write 0 512' -c close -c length r.raw
-f raw -c 'aio_write 0 512' -c quit r.raw
-f raw -c 'aio_write 2M 512' -c length -c 'read 0 512' r.raw
-f raw -c 'aio_write -i 0 512' -c 'aio_read -i 0 512' -c 'aio_write -z 0 4k 4k' -c 'aio_write -u 0 4k' -c 'aio_read x 1' -c 'aio_read 0 x' -c 'aio_read 0' -c 'aio_write -P x 0 1' -c 'aio_read -P x 0 1' -c 'aio_write -P 0 1' -c 'aio_read -P 0 1' r.raw
-f raw -c 'aio_write -z 0 4k' -c aio_flush -c 'aio_write -zP 1 0 4k' -c aio_flush -c 'aio_write -zu 0 4k' -c aio_flush -c 'aio_write -f 0 4k' -c aio_flush -c 'aio_write -C 0 4k' -c aio_flush -c 'aio_write -q 0 4k' -c aio_flush -c 'aio_write -zf 0 2G' r.raw
-f raw -c 'aio_read -i -x 0 1' -c 'aio_read -x -i 0 1' -c 'aio_read -i' -c 'aio_write -i -x 1 1' -c 'aio_write -zi 1 1' -c 'aio_write -z x 1' -c 'aio_write -z x 1 1' -c 'aio_write -z 0 x' -c 'aio_write -z 0' -c 'aio_write -zuP 1 x 1' -c 'aio_write -zu 0 1 1' -c 'aio_write -u 0 1 1' r.raw
-f raw -c 'aio_write 0 3G' -c 'aio_read 0 3G' -c 'aio_write -z 0 3G' -c aio_flush -c 'aio_read -v 0 20' -c aio_flush -c 'aio_read -qv 0 20' -c aio_flush -c 'aio_read -v -P 1 0 16' -c 'aio_flush' -c 'aio_read -C 0 4k' r.raw
-f raw -c 'aio_write 2M 1' -c 'aio_read 2M 1' -c 'aio_write 2M 2' -c 'aio_write 2M 3' -c 'aio_read 2M 4' -c aio_flush r.raw
-f raw -c 'aio_write 2M 1' -c 'readv 2M 1' -c 'aio_write 2M 1' -c 'writev 2M 1' -c 'aio_read 2M 1' -c 'read 2M 1' r.raw
--image-opts -c 'aio_read 0 1k' -c 'aio_read 0 2k' -c 'aio_read 0 3k' -c aio_flush driver=null-co,size=1M
-f raw r.raw <<< aio_read 0 512\n
-f raw r.raw <<< aio_read 0 512\nquit\n
`;

/** What comes from stdin, and what stands on the command line beside commands. */
export const FRAME_CASES = String.raw`
-f raw r.raw <<< read 0 512\nlength\n
-f raw r.raw <<< read 0 512\nlength
-f raw r.raw
-f raw r.raw <<< \n\n
-f raw r.raw <<< foo\nread 0 512\nquit\nread 0 512\n
-f raw r.raw <<< read 0 512\nread 2M 1\nread 0 512
-f raw r.raw <<< q
-f raw r.raw <<< sleep 10\nlength\n
-f raw r.raw <<< \tlength\n
-f raw r.raw <<< length\t\n
-f raw r.raw <<< length;length\n
-f raw r.raw <<< length # c\n
-f raw r.raw <<<  length \r\n
-f raw r.raw <<< read  0   512\n
-f raw r.raw <<< read "0" '512'\n
-f raw r.raw <<< read\t0\t512\n
-f raw r.raw <<< help\n
-f raw r.raw <<< help read\n
-f raw r.raw <<< \0length\n
-f raw r.raw <<< l\0ength\n
-f raw r.raw <<< "length"\n
<<< open -o driver=raw r.raw\nlength\nclose\nopen nonex\nquit\n
<<< open nonex\nopen nonex2\n
nonex <<< length\n
-f raw -c 'read 0 512' -c 'read 0 512' r.raw <<< length\n
-f raw -c q -c length r.raw
-f raw -c length -c quit -c length r.raw
-f raw -c 'quit 1' -c length r.raw
-c 'read 0 512' -c length -c close -c open -c 'open r.raw' -c length
-c 'open -o driver=raw r.raw' -c 'open -o driver=raw r.raw'
-f raw r.raw -c close -c close -c length
-c 'sigraise 0' -c 'sleep 1' -c flush -c info -c map -c 'alloc 0' -c 'truncate 0' -c 'break a b' -c 'resume a' -c 'wait_break a' -c 'remove_break a' -c 'discard 0 1' -c aio_flush -c 'aio_read 0 1' -c 'reopen' -c 'reopen -x' -c 'help' -c 'readv 0' -c 'readv'
-c 'help foo' -c 'help read write' -c 'help q' -c 'help ?' -c '? ?' -c '?' -c ' help   write ' -c 'help "write"'
-c 'help abort' -c 'help aio_flush' -c 'help aio_read' -c 'help aio_write' -c 'help alloc' -c 'help break' -c 'help close' -c 'help discard' -c 'help flush' -c 'help help' -c 'help info' -c 'help length' -c 'help map'
-c 'help open' -c 'help quit' -c 'help read' -c 'help readv' -c 'help remove_break' -c 'help reopen' -c 'help resume' -c 'help sigraise' -c 'help sleep' -c 'help truncate' -c 'help wait_break' -c 'help write' -c 'help writev'
-c length nonexist.raw
nonexist.raw
-c 'open nonexist.raw' -c length
-f foo r.raw
-f raw -c length
-f raw -c length ''
-f raw -c length .
-f raw -c length /dev/null
r.raw r.raw
-c length r.raw
-c 'write 0 512' r.raw
-r -c 'write 0 512' r.raw
-r -f raw -c 'write -z 0 512' -c 'discard 0 512' -c 'flush' -c 'truncate 2M' -c 'aio_write 0 1' -c 'writev 0 1' -c 'discard -x 0 1' -c 'write -x 0 1' -c 'write' r.raw
-x
--foo
--ca
--c length
--version=3
--image-opts=1
-f
-h
--help
-f raw -t foo -c length r.raw
-f raw -t none -c length r.raw
-f raw -t writethrough -c 'write 0 512' r.raw
-f raw -t directsync -c 'write 0 4k' -c 'read 0 4k' r.raw
-f raw -t unsafe -c 'write 0 512' -c flush r.raw
-f raw -d foo -c length r.raw
-f raw -d unmap -c length r.raw
-f raw -d on -c length r.raw
-f raw -i foo -c length r.raw
-f raw -i threads -c length r.raw
-f raw -i native -c length r.raw
-f raw -i native -n -c length r.raw
-f raw -k -n -c length r.raw
-f raw -i io_uring -c length r.raw
-f raw -k -c length r.raw
-f raw -C -c 'read 0 512' r.raw
-f raw -C -r -c 'read 0 512' r.raw
-f raw -m -n -c 'read 0 4k' -c 'write 0 4k' r.raw
-f raw -m -c 'read 0 4k' r.raw
-n -f raw -c 'read 1 1' -c 'write 1 1' -c 'read -v 0 16' r.raw
-U -f raw -c 'length' r.raw
-U -r -f raw -c 'length' r.raw
--image-opts -c length driver=raw,file.filename=r.raw
--image-opts -f raw -c length driver=raw,file.filename=r.raw
--image-opts -c length r.raw
--image-opts -c length ''
--image-opts -c length foo=bar
--image-opts -c length nofoo,bar=1,baz
--object foo -c length
--object secret,id=a,data=b -c length
--object secret -c length
-c length --image-opts driver=raw,offset=4k,size=513,file.filename=r.raw
-c length --image-opts driver=raw,offset=2M,file.filename=r.raw
-c length --image-opts driver=raw,offset=512k,size=1M,file.filename=r.raw
-c length --image-opts driver=nope,file.filename=r.raw
-c length --image-opts driver=raw,file.driver=file
-c length --image-opts driver=raw,file=nonode
-c length --image-opts driver=raw,file.filename=r.raw,read-only=maybe
-c length --image-opts driver=raw,file.filename=r.raw,cache.direct=maybe
-c length --image-opts driver=raw,file.filename=r.raw,discard=maybe
-c length --image-opts driver=raw,file.filename=r.raw,detect-zeroes=maybe
-c length --image-opts driver=raw,file.filename=r.raw,node-name=1x
-c length --image-opts driver=raw,file.filename=r.raw,node-name=x,file.node-name=x
-f file -c info -c map -c length -c 'write 0 1' -c 'write 2M 1' -c length r.raw
-f host_device -c info r.raw
--image-opts -c info -c 'read 0 512' -c map -c 'alloc 0 1M' -c 'write 0 512' -c 'truncate 2M' -c 'discard 0 512' -c 'length' driver=null-co,size=1M
`;

/** Opening, closing and reopening. */
export const OPEN_CASES = String.raw`
-c 'open -r -o driver=raw r.raw' -c 'write 0 1' -c close -c 'open -n -o driver=raw r.raw' -c close -c 'open -s -o driver=raw r.raw' -c info -c close -c 'open -C -o driver=raw r.raw' -c close
-c 'open -U -o driver=raw r.raw' -c 'open -k -o driver=raw r.raw' -c 'open -i foo r.raw' -c 'open -i threads -o driver=raw r.raw' -c close -c 'open -t foo r.raw' -c 'open -t none -o driver=raw r.raw' -c close -c 'open -d foo r.raw' -c 'open -d unmap -o driver=raw r.raw' -c close
-c 'open -x r.raw' -c 'open r.raw r.raw' -c 'open -o' -c 'open -o driver=raw,file.filename=r.raw' -c length -c close -c 'open -o foo=bar r.raw' -c 'open -o driver=raw,foo=bar r.raw' -c 'open -o driver=raw -o read-only=on r.raw' -c 'write 0 1' -c close
-c 'open -o driver=raw,driver=qcow2 r.raw' -c 'open -o foo r.raw' -c 'open -o =x r.raw' -c 'open -o driver=raw,size=1k r.raw' -c length
--image-opts -c 'open -o driver=raw r.raw' -c 'open driver=raw,file.filename=r.raw' -c 'length' -c close -c 'open foo' -c 'open -o driver=raw,file.filename=r.raw' -c length
-c 'open ""' -c 'open "r raw"' -c 'open -r'
-f raw -c 'reopen' -c 'reopen -r' -c 'write 0 1' -c 'reopen -w' -c 'write 0 1' -c 'reopen -x' -c 'reopen -r -w' -c 'reopen foo' -c 'reopen -c none' -c 'reopen -c foo' -c 'reopen -o foo=bar' -c 'reopen -o driver=qcow2' -c 'reopen -o read-only=on' -c 'write 0 1' r.raw
-f raw -c 'reopen -w -o read-only=on' -c 'reopen -w' -c 'reopen -c writeback -o cache.direct=on' -c 'reopen -c writethrough' -c 'write 0 1' -c 'reopen -o' -c 'reopen -o file.filename=x' -c 'reopen -o file.locking=off' -c 'reopen -o size=512' -c length -c 'reopen -o discard=unmap' -c 'reopen -w -r' r.raw
-r -f raw -c 'reopen -w' -c 'write 0 1' -c 'reopen -o read-only=on' -c 'write 0 1' r.raw
-f raw -c 'reopen -r -r' -c 'reopen -w' -c 'reopen -c writethrough -c none' -c 'reopen a b' -c 'reopen a' -c 'reopen -o =' -c 'reopen -o ""' -c 'reopen -o a' -c 'reopen -o a=b,c=d' -c 'reopen -r -o read-only=off' -c 'reopen -o read-only=off -r' -c 'reopen -c none -o cache.no-flush=on' -c 'reopen -o cache.writeback=off -c none' r.raw
-f raw -c 'reopen -o node-name=x' -c 'reopen -o file=x' -c 'reopen -o detect-zeroes=on' -c 'reopen -o discard=foo' -c 'reopen -o force-share=on' -c 'reopen -o auto-read-only=on' -c 'reopen -o read-only=foo' -c 'reopen -o cache.direct=maybe' -c 'reopen -o driver=raw' -c 'reopen -o file.driver=file' -c 'reopen -o file.filename=r.raw' -c 'reopen -o backing=x' r.raw
-f raw -c 'reopen -o offset=512' -c 'length' -c 'reopen -o offset=0,size=1k' -c length -c 'reopen -c directsync' -c 'reopen -c unsafe' -c 'reopen -c off' -c 'reopen -r' -c 'reopen -o read-only=off' -c 'write 0 1' r.raw
-r -f raw -c 'reopen -o read-only=off' -c 'write 0 512' -c 'reopen' -c 'write 0 512' -c 'reopen -r' -c 'write 0 512' -c 'reopen' -c 'write 0 512' r.raw
-f raw -s -c 'write -P 7 0 512' -c 'read -P 7 0 512' -c 'info' -c map -c 'truncate 2M' -c length r.raw
-f raw -s -r -c 'write -P 7 0 512' r.raw
-c 'open -s -o driver=raw r.raw' -c 'write 0 512' -c close -c 'open -o driver=raw r.raw' -c 'read -P 0 0 512'
`;

/** On `q.qcow2`, an empty megabyte, and on `over.qcow2`, whose backing file `base.raw` has data in its first half. */
export const QCOW2_CASES = String.raw`
-f qcow2 -c info -c map -c 'write 64k 64k' -c map -c 'alloc 0 1M' -c 'alloc 64k 128k' -c info q.qcow2
-f qcow2 -c 'write -P 1 0 128k' -c 'write -P 2 64k 1k' -c 'write -z 32k 32k' -c 'write -z 0 64k' -c map -c 'discard 64k 64k' -c map -c 'read -P 0 64k 64k' q.qcow2
-f qcow2 -c 'write -zu 0 128k' -c map -c 'write -P 2 64k 1k' -c map -c 'write -z 500k 200k' -c map -c 'read -P 0 500k 200k' q.qcow2
-f qcow2 -c 'write -P 1 0 1M' -c 'discard 0 64k' -c 'discard 100k 100k' -c 'write -zu 512k 64k' -c 'write -z 640k 64k' -c map q.qcow2
-f qcow2 -d ignore -c 'write -P 1 0 1M' -c 'discard 0 64k' -c 'read -P 1 0 64k' -c 'write -zu 512k 64k' -c map q.qcow2
-f qcow2 -d unmap -c 'write -P 1 0 1M' -c 'discard 0 64k' -c 'write -z 512k 64k' -c map q.qcow2
-f qcow2 -c 'write -c -P 1 0 128k' -c 'write -P 2 1k 1k' -c 'read -P 1 0 1k' -c 'read -P 2 1k 1k' -c map -c 'write -c 256k 64k' -c 'write -c 256k 64k' -c 'write -c 960k 64k' -c 'truncate 1000000' -c 'truncate 999936' -c 'write -c 983040 16896' -c map q.qcow2
-f qcow2 -c 'write -c 64k 64k' -c 'write -c 64k 512' -c 'write -c 0 1000' -c 'write -c 983040 64k' -c 'write -c 100 65536' -c 'write -c 0 192k' -c 'write -c 1M 512' -c 'write -c 0 0' -c 'write -c 512 64k' -c map q.qcow2
-f qcow2 -c 'writev -P 9 0 1k 2k 61k' -c 'readv -v -P 9 0 16 16' -c 'readv -P 9 0 64k 1k' -c 'aio_write -z 0 64k' -c aio_flush -c map q.qcow2
-f qcow2 -c 'write 1M 1' -c 'read 1M 1' -c 'write -c 1M 64k' -c 'write -z 1M 1' -c 'discard 1M 1' -c 'read 0 0' -c 'write 1M 0' q.qcow2
-f qcow2 -c 'truncate 512k' -c length -c map -c 'truncate 3M' -c map -c 'truncate -m falloc 4M' -c map -c 'truncate -m full 5M' -c map -c 'truncate -m metadata 6M' -c map -c 'truncate 1' -c 'truncate 1000' -c length q.qcow2
-f qcow2 -c 'write -P 7 0 1k' -c 'read -P 7 0 1k' -c 'read -P 5 1k 63k' -c map -c 'alloc 0 1M' -c 'alloc 0 64k' -c 'truncate 2M' -c length -c map -c 'read -P 0 1M 1M' over.qcow2
-f qcow2 -c 'write -z 0 64k' -c 'write -zu 64k 64k' -c 'discard 128k 64k' -c 'read -P 0 0 192k' -c 'write -z 200k 1k' -c 'write -c -P 3 256k 64k' -c map over.qcow2
-f qcow2 -C -c 'read 1k 1k' -c 'read 130k 1k' -c map -c info -c 'reopen -r' -c 'read 600k 1k' -c map over.qcow2
-f qcow2 -C -c 'read 500k 200k' -c map -c 'read 2M 1' -c 'truncate 2M' -c 'read 1020k 8k' -c 'aio_read 1500k 4k' -c aio_flush -c 'readv 0 64k 1' -c map over.qcow2
-f qcow2 -C -c 'write 64k 1k' -c 'read 0 192k' -c map over.qcow2
-f qcow2 -C -c 'read 1k 1k' -c map q.qcow2
-f qcow2 -C -c 'read 1k 1k' -c map -c 'read 255k 5k' -c map ext.qcow2
-f qcow2 -C -r -c 'read 1k 1k' over.qcow2
-c 'open -C over.qcow2' -c 'read 0 1' -c map -c close -c 'open -C -s over.qcow2' -c 'read 64k 64k' -c map
-f qcow2 -r -c 'write 0 1' -c 'read 0 1' -c 'discard 0 64k' -c flush q.qcow2
-c 'read 0 1k' -c info q.qcow2
-c 'write 0 512' -c 'write 511 2' -c 'write -P 0 0 512' -c 'write -z 0 512' -c 'discard 0 512' -c 'write 512 512' -s q.qcow2
-f raw -c 'read 0 4' -c length -c info q.qcow2
-f qcow2 -c length r.raw
-f qcow2 -c 'reopen -r' -c 'read 0 1' -c 'write 0 1' -c 'reopen -w' -c 'write 0 1' -c close -c length q.qcow2
-f qcow2 -c 'reopen' -c 'reopen -o lazy-refcounts=on' -c info -c 'reopen -o l2-cache-size=1' -c 'reopen -o cluster_size=4k' -c 'reopen -r' -c 'write 0 64k' -c 'reopen -o backing=' -c 'reopen -o backing.driver=raw' q.qcow2
-f qcow2 -c 'reopen -o lazy-refcounts=on' -c 'reopen -o lazy-refcounts=foo' -c 'reopen -o l2-cache-size=64k' -c 'reopen -o overlap-check=none' -c 'reopen -o pass-discard-request=on' -c 'reopen -r' -c 'reopen -w' -c 'write 0 1k' -c 'reopen -o backing=foo' -c 'reopen -o file=foo' -c 'reopen -o driver=raw' q.qcow2
-s -f qcow2 -c 'write -P 7 0 512' -c 'read -P 7 0 512' -c 'read -P 5 512 1k' -c 'info' -c map over.qcow2
-n -f qcow2 -c 'write -P 7 100 512' -c 'read -P 7 100 512' -c 'write -c 64k 64k' -c 'read -v 64k 16' q.qcow2
-t writeback -f qcow2 -c 'write -P 7 100 512' -c 'write -f 1k 1k' -c flush -c 'aio_write -f 64k 1k' q.qcow2
-t unsafe -f qcow2 -c 'write -P 7 100 512' -c 'write -f 1k 1k' -c flush q.qcow2
-f qcow2 -c 'write -P 3 4k 2k' -c map -c 'write -z 66k 2k' -c 'write -zu 64k 4k' -c 'discard 4k 2k' -c map -c 'write -c 128k 64k' -c 'write -P 4 130k 1k' -c map -c info ext.qcow2
-f qcow2 -c 'write -P 3 4k 2k' -c 'write -z 0 64k' -c 'write -zu 64k 64k' -c 'discard 4k 2k' -c map -c 'write -c 128k 64k' -c 'truncate 3M' -c map -c info old.qcow2
-f qcow2 -c 'write -P 3 4k 2k' -c 'write -z 0 64k' -c 'discard 4k 2k' -c 'write -c 128k 64k' -c map -c info zstd.qcow2
-f qcow2 -c 'write -P 3 4k 2k' -c 'write -z 0 64k' -c 'discard 4k 2k' -c 'write -c 128k 64k' -c map -c info data.qcow2
--image-opts -c info -c map -c 'write -P 3 0 64k' -c 'write -P 4 64k 128k' -c 'read -P 4 64k 128k' -c map -c 'write -P 5 512 512' -c 'write -P 6 512k 1k' -c 'read -P 6 512k 1k' -c 'read -P 0 513k 63k' -c 'write -z 768k 64k' -c 'write -z 700k 1k' -c map -c flush driver=compress,file.driver=qcow2,file.file.filename=q.qcow2
--image-opts -c 'write 0 64k' -c 'write 1M 1' -c 'truncate 2M' -c length -c 'write -c 64k 64k' -c 'write -z 128k 64k' -c 'discard 0 64k' -c map -c 'alloc 0 1M' driver=compress,file.driver=qcow2,file.file.filename=q.qcow2
--image-opts -c 'write -P 8 0 64k' -c 'read -P 5 64k 1k' -c 'write -P 8 65k 1k' -c 'read -P 5 64k 1k' -c map driver=compress,file.driver=qcow2,file.file.filename=over.qcow2
-c 'open -o driver=qcow2,detect-zeroes=unmap,discard=unmap q.qcow2' -c 'write -P 0 0 128k' -c 'write -P 0 128k 1k' -c 'write -P 1 256k 64k' -c 'write -P 0 256k 64k' -c map
-c 'open -o driver=qcow2,detect-zeroes=on q.qcow2' -c 'write -P 0 0 128k' -c map
-c 'open -o driver=qcow2,detect-zeroes=unmap,discard=ignore q.qcow2' -c 'write -P 0 0 128k'
-c 'open -o lazy-refcounts=on q.qcow2' -c 'write 0 1' -c info -c close -c 'open q.qcow2' -c info
-c 'read 0 1M' -c 'write 512k 512k' --image-opts driver=raw,offset=4k,size=512k,file.filename=r.raw
--image-opts -c 'write 0 64k' driver=compress,file.driver=raw,file.file.filename=r.raw
`;

/** blkdebug below and above the image: errors that it injects, requests that it holds up. */
export const BLKDEBUG_CASES = String.raw`
-c 'open -o driver=raw,file.driver=blkdebug,file.image.filename=r.raw' -c 'break read_aio a' -c 'aio_read 0 512' -c 'wait_break a' -c 'read 512 512' -c 'resume a' -c 'aio_flush' -c 'resume a' -c 'remove_break a' -c 'remove_break a' -c 'break foo b'
-c 'open -o driver=qcow2,file.driver=blkdebug,file.image.filename=q.qcow2' -c 'break write_aio a' -c 'aio_write 0 64k' -c 'wait_break a' -c 'aio_write 128k 64k' -c 'sleep 50' -c 'length' -c 'resume a' -c 'aio_flush' -c map
-c 'open -o driver=qcow2,file.driver=blkdebug,file.image.filename=q.qcow2' -c 'break cluster_alloc a' -c 'aio_write -P 1 0 64k' -c 'wait_break a' -c 'break l2_load b' -c 'resume a' -c 'aio_flush' -c map
-c 'open -o driver=blkdebug,image.driver=raw,image.file.filename=r.raw' -c 'break read_aio a' -c 'break write_aio a' -c 'resume b'
-c 'open -t writeback -o driver=qcow2,file.driver=blkdebug,file.image.filename=over.qcow2' -c 'break cow_write a' -c 'aio_write -P 1 4k 4k' -c 'wait_break a' -c 'aio_write -P 2 8k 4k' -c 'resume a' -c aio_flush -c 'read -P 1 4k 4k' -c 'read -P 2 8k 4k' -c map
-c 'open -o driver=qcow2,file.driver=blkdebug,file.image.filename=over.qcow2' -c 'break cow_read a' -c 'aio_write -P 1 4k 4k' -c 'wait_break a' -c 'read 512k 512' -c 'resume a' -c aio_flush -c map
-c 'open -o driver=raw,file.driver=blkdebug,file.image.filename=r.raw' -c 'break pwritev_done a' -c 'aio_write 0 4k' -c 'wait_break a' -c 'resume a' -c aio_flush -c 'break pwritev b' -c 'aio_write 1k 4k' -c 'wait_break b' -c 'resume b' -c 'close'
--image-opts -c 'write 0 512' -c 'read 0 512' -c 'write -z 0 64k' -c 'discard 0 64k' -c 'write 100 100' driver=blkdebug,align=4096,max-transfer=64k,image.driver=raw,image.file.filename=r.raw
--image-opts -c 'write 0 512' -c 'write -z 3 70000' -c 'read -v 0 4' -c 'discard 100 130000' -c 'write 0 1M' driver=blkdebug,align=512,max-transfer=64k,opt-write-zero=4k,max-write-zero=32k,opt-discard=4k,max-discard=16k,image.driver=qcow2,image.file.filename=q.qcow2
-c 'read 0 512' -c 'read 0 512' -f raw blkdebug:inject.conf:r.raw
-c 'aio_read 0 512' -c 'aio_flush' -c 'aio_read 0 512' -c aio_flush -f raw blkdebug:inject.conf:r.raw
-c 'read 0 512' -c info -c map -c length -f raw blkdebug::r.raw
-c 'read 0 512' -f raw blkdebug:nope:r.raw
-t writeback --image-opts -c 'write 0 512' -c flush -c 'read 0 512' -c 'write -f 0 512' -c 'aio_write 0 512' -c flush driver=raw,file.driver=blkdebug,file.image.filename=r.raw,file.inject-error.0.event=none,file.inject-error.0.iotype=flush
--image-opts -c 'write 0 512' -c 'aio_write 0 512' -c 'writev 0 512' -c 'write -z 0 4k' -c 'discard 0 4k' -c flush driver=raw,file.driver=blkdebug,file.image.filename=r.raw,file.inject-error.0.event=none,file.inject-error.0.errno=28
--image-opts -c 'read 0 512' -c map -c 'alloc 0 1M' driver=qcow2,file.driver=blkdebug,file.image.filename=q.qcow2,file.inject-error.0.event=l2_load
--image-opts -c info -c map -c 'alloc 0 1M' driver=blkdebug,image.driver=qcow2,image.file.filename=q.qcow2
--image-opts -c info -c map -c 'alloc 0 1M' driver=raw,file.driver=blkdebug,file.image.filename=r.raw
`;

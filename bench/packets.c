// SPDX-License-Identifier: Apache-2.0
/*
 * A bounded packet generator: sends the frames of a file, over and over, at a rate, for a time, through one interface.
 *
 *     packets INTERFACE FILE RATE SECONDS
 *
 * FILE holds frames, each behind its length as a 32-bit number in the machine's order. RATE is packets per second, at
 * most 1,000,000; SECONDS at most 120. Frames bypass the queueing discipline. Refuses every interface that is not one
 * end of a veth pair: floods stay in namespaces. Prints how many packets it sent, how many the
 * device refused, and its CPU time, in which on a veth pair is that of the receiving side's softirq.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>

#define MOST_FRAMES 4096
#define LONGEST     2048
#define BATCH       64
#define SLICE_NS    1000000L

static char bytes[MOST_FRAMES][LONGEST];
static struct iovec parts[MOST_FRAMES];
static struct mmsghdr messages[BATCH];

static void fail(const char *what)
{
    fprintf(stderr, "packets: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void only_veth(int sock, const char *interface)
{
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq request = {0};

    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
    request.ifr_data = (void *)&info;
    if (ioctl(sock, SIOCETHTOOL, &request))
        fail("asking for the driver");
    if (strcmp(info.driver, "veth") != 0) {
        fprintf(stderr, "packets: %s is no veth device\n", interface);
        exit(1);
    }
}

static uint32_t read_frames(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint32_t count = 0, length;

    if (!file)
        fail(path);
    while (count < MOST_FRAMES && fread(&length, sizeof(length), 1, file) == 1) {
        if (length > LONGEST || fread(bytes[count], 1, length, file) != length) {
            fprintf(stderr, "packets: %s: bad frame %u\n", path, count);
            exit(1);
        }
        parts[count].iov_base = bytes[count];
        parts[count].iov_len = length;
        count++;
    }
    fclose(file);
    if (!count) {
        fprintf(stderr, "packets: no frames in %s\n", path);
        exit(1);
    }
    return count;
}

int main(int argc, char **argv)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int64_t rate, begun, end, sent = 0, refused = 0, due;
    struct timespec cpu;
    uint32_t count, next = 0;
    int sock, one = 1;

    if (argc != 5) {
        fprintf(stderr, "usage: packets INTERFACE FILE RATE SECONDS\n");
        return 2;
    }
    rate = atoll(argv[3]);
    if (rate < 1 || rate > 1000000 || atof(argv[4]) > 120) {
        fprintf(stderr, "packets: at most 1000000 per second, for 120 seconds\n");
        return 2;
    }
    count = read_frames(argv[2]);
    sock = socket(AF_PACKET, SOCK_RAW, 0); /* protocol 0: receives nothing */
    if (sock < 0)
        fail("opening a packet socket");
    only_veth(sock, argv[1]);
    address.sll_ifindex = if_nametoindex(argv[1]);
    if (bind(sock, (struct sockaddr *)&address, sizeof(address)))
        fail("binding");
    if (setsockopt(sock, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)))
        fail("bypassing the queueing discipline");
    begun = now_ns();
    end = begun + (int64_t)(atof(argv[4]) * 1e9);
    while (now_ns() < end) {
        struct timespec slice = {0, SLICE_NS};

        due = (int64_t)((double)(now_ns() - begun) * 1e-9 * (double)rate) - sent - refused;
        while (due > 0) {
            int want = due < BATCH ? (int)due : BATCH, i, done;

            for (i = 0; i < want; i++) {
                memset(&messages[i], 0, sizeof(messages[i]));
                messages[i].msg_hdr.msg_iov = &parts[(next + i) % count];
                messages[i].msg_hdr.msg_iovlen = 1;
            }
            done = sendmmsg(sock, messages, want, 0);
            if (done <= 0) {
                refused++;
                done = 0;
                next++;
                due--;
            }
            sent += done;
            next += done;
            due -= done;
            if (now_ns() >= end)
                break;
        }
        nanosleep(&slice, NULL);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("{\"sent\": %lld, \"refused\": %lld, \"seconds\": %.3f, \"cpu_s\": %.6f}\n", (long long)sent,
           (long long)refused, (double)(now_ns() - begun) / 1e9, (double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9);
    return 0;
}

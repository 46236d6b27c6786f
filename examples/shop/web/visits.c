/* A CGI program: one more visit is counted in redis, and the answer says how many there were. */

#include <stdio.h>

#include <hiredis/hiredis.h>

static int fail(const char *why)
{
    printf("Status: 503 Service Unavailable\r\nContent-Type: text/plain\r\n\r\nno answer from redis: %s\n", why);
    return 1;
}

int main(void)
{
    struct timeval patience = { .tv_sec = 2 };
    redisContext *redis = redisConnectWithTimeout("127.0.0.1", 6379, patience);
    redisReply *reply;

    if (!redis || redis->err)
        return fail(redis ? redis->errstr : "out of memory");
    reply = redisCommand(redis, "INCR visits");
    if (!reply || reply->type != REDIS_REPLY_INTEGER)
        return fail(reply && reply->type == REDIS_REPLY_ERROR ? reply->str : redis->errstr);
    printf("Content-Type: text/plain\r\n\r\nvisits: %lld\n", reply->integer);
    freeReplyObject(reply);
    redisFree(redis);
    return 0;
}

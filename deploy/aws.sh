#!/usr/bin/env bash
# What cluster.yaml needs in an AWS account, once: a bucket; two roles, of which the workers' can use the bucket and
# nothing else; a security group that lets one address in, by SSH.
#
#   deploy/aws.sh YOUR-BUCKET 203.0.113.7/32       the bucket's name, and the address that you come from
#
# Run it again to add an address. The default VPC is used: with several VPCs, name the same one's SubnetIds in
# cluster.yaml.
set -euo pipefail
bucket=${1:?the name of a bucket} address=${2:?your address, such as 203.0.113.7/32} group=cca-ray
if [[ $address == *:* || $address != */* || $address == */0 ]]; then
    echo "error: $address: want an IPv4 address with the length of its network, such as 203.0.113.7/32" >&2
    exit 2
fi
region=$(sed -n 's/^  region: //p' "$(dirname "$0")/../cluster.yaml")
export AWS_DEFAULT_REGION=$region AWS_PAGER=""

aws s3api head-bucket --bucket "$bucket" >/dev/null 2>&1 || aws s3 mb "s3://$bucket"
aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true

by_ec2='{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
for role in $group-head $group-worker; do
    if ! aws iam get-role --role-name "$role" >/dev/null 2>&1; then
        aws iam create-role --role-name "$role" --assume-role-policy-document "$by_ec2" >/dev/null
        aws iam create-instance-profile --instance-profile-name "$role" >/dev/null
        aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
    fi
    aws iam put-role-policy --role-name "$role" --policy-name bucket --policy-document '{
        "Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::'"$bucket"'"},
            {"Effect": "Allow", "Resource": "arn:aws:s3:::'"$bucket"'/*", "Action": [
                "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]}]}'
done
account=$(aws sts get-caller-identity --query Account --output text)
aws iam put-role-policy --role-name $group-head --policy-name nodes --policy-document '{
    "Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Resource": "*", "Action": [
            "ec2:RunInstances", "ec2:CreateTags", "ec2:Describe*", "ssm:GetParameters"]},
        {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "*",
         "Condition": {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": "cca-ray"}}},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::'"$account"':role/'$group'-worker"}]}'
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null 2>&1 || true  # there already

vpc=$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)
of_vpc="Name=vpc-id,Values=$vpc Name=group-name,Values=$group"
# shellcheck disable=SC2086  # two filters
id=$(aws ec2 describe-security-groups --filters $of_vpc --query 'SecurityGroups[0].GroupId' --output text)
if [[ $id == None ]]; then
    id=$(aws ec2 create-security-group --group-name $group --description "cca_ray: among the nodes, and SSH" \
        --vpc-id "$vpc" --query GroupId --output text)
    aws ec2 authorize-security-group-ingress --group-id "$id" --protocol=-1 --source-group "$id" >/dev/null
fi
aws ec2 authorize-security-group-ingress --group-id "$id" --protocol tcp --port 22 --cidr "$address" >/dev/null ||
    echo "(SSH from $address was open already)"
echo "bucket $bucket, roles $group-head and $group-worker, security group $id: write $bucket into cluster.yaml"
